SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.all_pairs (
    id bigint NOT NULL,
    job_id bigint NOT NULL,
    dataset text,
    n_models bigint,
    n_pairs bigint,
    file text,
    seconds double precision
);
CREATE SEQUENCE public.all_pairs_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.all_pairs_id_seq OWNED BY public.all_pairs.id;
CREATE TABLE public.attempts (
    id bigint NOT NULL,
    job_id bigint NOT NULL,
    fence integer NOT NULL,
    worker text NOT NULL,
    started_at double precision NOT NULL,
    ended_at double precision NOT NULL,
    outcome text NOT NULL,
    progress text,
    error text,
    message text,
    traceback text,
    error_group text
);
CREATE SEQUENCE public.attempts_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.attempts_id_seq OWNED BY public.attempts.id;
CREATE TABLE public.class_flips (
    id bigint NOT NULL,
    job_id bigint NOT NULL,
    dataset text,
    teacher text,
    student text,
    class_index bigint NOT NULL,
    class_name text,
    n bigint,
    positive_flips bigint,
    negative_flips bigint
);
CREATE SEQUENCE public.class_flips_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.class_flips_id_seq OWNED BY public.class_flips.id;
CREATE TABLE public.complementarity (
    id bigint NOT NULL,
    job_id bigint NOT NULL,
    dataset text,
    dataset_key text,
    teacher text,
    student text,
    teacher_key text,
    student_key text,
    n bigint,
    acc_teacher double precision,
    acc_student double precision,
    delta_acc double precision,
    rho_pos double precision,
    rho_neg double precision,
    n_positive_flips bigint,
    n_negative_flips bigint,
    agreement double precision,
    error_overlap double precision,
    kappa double precision,
    entropy double precision,
    entropy_null double precision,
    top2_classes double precision,
    top5_classes double precision,
    top20_classes double precision,
    top50_classes double precision,
    top2_similarity double precision,
    top5_similarity double precision,
    top20_similarity double precision,
    top50_similarity double precision,
    similarity text,
    source text
);
CREATE SEQUENCE public.complementarity_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.complementarity_id_seq OWNED BY public.complementarity.id;
CREATE TABLE public.datasets (
    key text NOT NULL,
    name text NOT NULL,
    record text NOT NULL
);
CREATE TABLE public.evaluations (
    id bigint NOT NULL,
    job_id bigint NOT NULL,
    dataset text,
    dataset_key text,
    model text,
    model_key text,
    split text,
    n bigint,
    acc double precision,
    loss double precision,
    seconds double precision,
    images_per_s double precision,
    device text,
    source text
);
CREATE SEQUENCE public.evaluations_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.evaluations_id_seq OWNED BY public.evaluations.id;
CREATE TABLE public.job_needs (
    job_id bigint NOT NULL,
    needs_id bigint NOT NULL
);
CREATE TABLE public.jobs (
    id bigint NOT NULL,
    kind text NOT NULL,
    digest text NOT NULL,
    spec text NOT NULL,
    state text NOT NULL,
    paused boolean DEFAULT false NOT NULL,
    priority integer DEFAULT 0 NOT NULL,
    estimate_s double precision DEFAULT '60'::double precision NOT NULL,
    teacher text,
    student text,
    needs_open integer DEFAULT 0 NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    crashes integer DEFAULT 0 NOT NULL,
    fence integer DEFAULT 0 NOT NULL,
    not_before double precision DEFAULT '0'::double precision NOT NULL,
    worker text,
    lease_until double precision,
    created_at double precision NOT NULL,
    changed_at double precision NOT NULL
);
CREATE SEQUENCE public.jobs_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.jobs_id_seq OWNED BY public.jobs.id;
CREATE TABLE public.models (
    key text NOT NULL,
    name text NOT NULL,
    record text NOT NULL
);
CREATE TABLE public.studies (
    id bigint NOT NULL,
    name text NOT NULL,
    spec text NOT NULL,
    paused boolean DEFAULT false NOT NULL,
    created_at double precision NOT NULL
);
CREATE SEQUENCE public.studies_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.studies_id_seq OWNED BY public.studies.id;
CREATE TABLE public.study_jobs (
    study_id bigint NOT NULL,
    job_id bigint NOT NULL
);
CREATE TABLE public.trainings (
    id bigint NOT NULL,
    job_id bigint NOT NULL,
    dataset text,
    model text,
    model_key text,
    scope text,
    n bigint,
    epochs bigint,
    loss double precision,
    seconds double precision
);
CREATE SEQUENCE public.trainings_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.trainings_id_seq OWNED BY public.trainings.id;
CREATE TABLE public.transfer_epochs (
    id bigint NOT NULL,
    job_id bigint NOT NULL,
    dataset text,
    student text,
    teacher text,
    objective text,
    stage bigint,
    epoch bigint NOT NULL,
    loss double precision,
    acc double precision,
    delta_transf double precision,
    seconds double precision
);
CREATE SEQUENCE public.transfer_epochs_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.transfer_epochs_id_seq OWNED BY public.transfer_epochs.id;
CREATE TABLE public.transfers (
    id bigint NOT NULL,
    job_id bigint NOT NULL,
    dataset text,
    dataset_key text,
    student text,
    teacher text,
    student_key text,
    teacher_key text,
    objective text,
    epochs bigint,
    batch_size bigint,
    lr double precision,
    momentum double precision,
    weight_decay double precision,
    temperature double precision,
    kl_weight double precision,
    label_smoothing double precision,
    top_k bigint,
    warmup_epochs bigint,
    flips text,
    views bigint,
    augment text,
    crop text,
    batchnorm text,
    reading text,
    mcl_tau double precision,
    mcl_every bigint,
    "precision" text,
    channels_last boolean,
    grad_clip double precision,
    micro_batch bigint,
    deterministic boolean,
    compile boolean,
    loader text,
    multi_teacher text,
    teacher_order text,
    seed bigint,
    n bigint,
    n_train bigint,
    acc_teacher double precision,
    acc_before double precision,
    acc_after double precision,
    delta_transf double precision,
    delta_transf_low double precision,
    delta_transf_high double precision,
    mcnemar_p double precision,
    knowledge_gain double precision,
    knowledge_loss double precision,
    rho_pos_before double precision,
    rho_pos_after double precision,
    rho_neg_before double precision,
    rho_neg_after double precision,
    transfer_rate_top2 double precision,
    transfer_rate_top5 double precision,
    transfer_rate_top20 double precision,
    transfer_rate_top50 double precision,
    transfer_rate_top100 double precision,
    transfer_rate_strict_top2 double precision,
    transfer_rate_strict_top5 double precision,
    transfer_rate_strict_top20 double precision,
    transfer_rate_strict_top50 double precision,
    transfer_rate_strict_top100 double precision,
    dp_pos_to_teacher double precision,
    dp_neg_to_teacher double precision,
    teacher_share double precision,
    diverged boolean,
    diverged_step bigint,
    steps bigint,
    seconds double precision,
    images_per_s double precision,
    peak_memory bigint,
    device text,
    host text,
    versions text,
    predictions text,
    weights text
);
CREATE SEQUENCE public.transfers_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.transfers_id_seq OWNED BY public.transfers.id;
CREATE TABLE public.workers (
    id text NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    slurm_job text,
    log text,
    device text,
    started_at double precision NOT NULL,
    beat_at double precision NOT NULL,
    ended_at double precision
);
ALTER TABLE ONLY public.all_pairs ALTER COLUMN id SET DEFAULT nextval('public.all_pairs_id_seq'::regclass);
ALTER TABLE ONLY public.attempts ALTER COLUMN id SET DEFAULT nextval('public.attempts_id_seq'::regclass);
ALTER TABLE ONLY public.class_flips ALTER COLUMN id SET DEFAULT nextval('public.class_flips_id_seq'::regclass);
ALTER TABLE ONLY public.complementarity ALTER COLUMN id SET DEFAULT nextval('public.complementarity_id_seq'::regclass);
ALTER TABLE ONLY public.evaluations ALTER COLUMN id SET DEFAULT nextval('public.evaluations_id_seq'::regclass);
ALTER TABLE ONLY public.jobs ALTER COLUMN id SET DEFAULT nextval('public.jobs_id_seq'::regclass);
ALTER TABLE ONLY public.studies ALTER COLUMN id SET DEFAULT nextval('public.studies_id_seq'::regclass);
ALTER TABLE ONLY public.trainings ALTER COLUMN id SET DEFAULT nextval('public.trainings_id_seq'::regclass);
ALTER TABLE ONLY public.transfer_epochs ALTER COLUMN id SET DEFAULT nextval('public.transfer_epochs_id_seq'::regclass);
ALTER TABLE ONLY public.transfers ALTER COLUMN id SET DEFAULT nextval('public.transfers_id_seq'::regclass);
INSERT INTO public.alembic_version VALUES ('0001');
INSERT INTO public.attempts VALUES (1, 1, 1, 'old-worker', 1700000010, 1700000020, 'done', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.attempts VALUES (2, 5, 1, 'old-worker', 1700000010, 1700000020, 'failed', NULL, 'ValueError', 'wrong', 'trace', 'abc');
INSERT INTO public.evaluations VALUES (1, 1, 'digits', NULL, 'm', NULL, NULL, 10, 93.5, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.job_needs VALUES (4, 2);
INSERT INTO public.job_needs VALUES (4, 3);
INSERT INTO public.jobs VALUES (1, 'logits', '8fd1f4a63baa973702d08cccc30be69c', '{"number":1}', 'done', false, 0, 61, 't1', NULL, 0, 1, 0, 1, 0, 'old-worker', NULL, 1700000000, 1700000050);
INSERT INTO public.jobs VALUES (2, 'logits', 'a5b614dea525c7c3c14792b3aed19529', '{"number":2}', 'running', false, 0, 62, 't2', NULL, 0, 0, 0, 1, 0, 'old-worker', 1700000100, 1700000000, 1700000050);
INSERT INTO public.jobs VALUES (3, 'logits', '4164182e4258b29414cc5af11d73f70d', '{"number":3}', 'ready', false, 0, 63, 't3', NULL, 0, 0, 0, 0, 0, NULL, NULL, 1700000000, 1700000050);
INSERT INTO public.jobs VALUES (4, 'transfer', 'd64ebc29fc4e7b2cfd3c78a30fa50d8b', '{"number":4}', 'blocked', false, 0, 64, 't4', NULL, 2, 0, 0, 0, 0, NULL, NULL, 1700000000, 1700000050);
INSERT INTO public.jobs VALUES (5, 'logits', '865bba042c71e40e5ec5a1ba5ceaa5df', '{"number":5}', 'failed', false, 0, 65, 't5', NULL, 0, 1, 0, 1, 0, 'old-worker', NULL, 1700000000, 1700000050);
INSERT INTO public.studies VALUES (1, 'old', '{"seed":7}', false, 1700000000);
INSERT INTO public.study_jobs VALUES (1, 1);
INSERT INTO public.study_jobs VALUES (1, 2);
INSERT INTO public.study_jobs VALUES (1, 3);
INSERT INTO public.study_jobs VALUES (1, 4);
INSERT INTO public.study_jobs VALUES (1, 5);
INSERT INTO public.workers VALUES ('old-worker', 'node1', 77, NULL, NULL, NULL, 1700000000, 1700000050, NULL);
SELECT pg_catalog.setval('public.all_pairs_id_seq', 1, false);
SELECT pg_catalog.setval('public.attempts_id_seq', 2, true);
SELECT pg_catalog.setval('public.class_flips_id_seq', 1, false);
SELECT pg_catalog.setval('public.complementarity_id_seq', 1, false);
SELECT pg_catalog.setval('public.evaluations_id_seq', 1, true);
SELECT pg_catalog.setval('public.jobs_id_seq', 5, true);
SELECT pg_catalog.setval('public.studies_id_seq', 1, true);
SELECT pg_catalog.setval('public.trainings_id_seq', 1, false);
SELECT pg_catalog.setval('public.transfer_epochs_id_seq', 1, false);
SELECT pg_catalog.setval('public.transfers_id_seq', 1, false);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.all_pairs
    ADD CONSTRAINT all_pairs_job_id_key UNIQUE (job_id);
ALTER TABLE ONLY public.all_pairs
    ADD CONSTRAINT all_pairs_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT attempts_job_id_fence_key UNIQUE (job_id, fence);
ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT attempts_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.class_flips
    ADD CONSTRAINT class_flips_job_id_class_index_key UNIQUE (job_id, class_index);
ALTER TABLE ONLY public.class_flips
    ADD CONSTRAINT class_flips_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.complementarity
    ADD CONSTRAINT complementarity_job_id_key UNIQUE (job_id);
ALTER TABLE ONLY public.complementarity
    ADD CONSTRAINT complementarity_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.datasets
    ADD CONSTRAINT datasets_pkey PRIMARY KEY (key);
ALTER TABLE ONLY public.evaluations
    ADD CONSTRAINT evaluations_job_id_key UNIQUE (job_id);
ALTER TABLE ONLY public.evaluations
    ADD CONSTRAINT evaluations_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.job_needs
    ADD CONSTRAINT job_needs_pkey PRIMARY KEY (job_id, needs_id);
ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT jobs_digest_kind_key UNIQUE (digest, kind);
ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.models
    ADD CONSTRAINT models_pkey PRIMARY KEY (key);
ALTER TABLE ONLY public.studies
    ADD CONSTRAINT studies_name_key UNIQUE (name);
ALTER TABLE ONLY public.studies
    ADD CONSTRAINT studies_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.study_jobs
    ADD CONSTRAINT study_jobs_pkey PRIMARY KEY (study_id, job_id);
ALTER TABLE ONLY public.trainings
    ADD CONSTRAINT trainings_job_id_key UNIQUE (job_id);
ALTER TABLE ONLY public.trainings
    ADD CONSTRAINT trainings_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.transfer_epochs
    ADD CONSTRAINT transfer_epochs_job_id_epoch_key UNIQUE (job_id, epoch);
ALTER TABLE ONLY public.transfer_epochs
    ADD CONSTRAINT transfer_epochs_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.transfers
    ADD CONSTRAINT transfers_job_id_key UNIQUE (job_id);
ALTER TABLE ONLY public.transfers
    ADD CONSTRAINT transfers_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.workers
    ADD CONSTRAINT workers_pkey PRIMARY KEY (id);
CREATE INDEX ix_attempts_error_group ON public.attempts USING btree (error_group);
CREATE INDEX ix_job_needs_needs_id ON public.job_needs USING btree (needs_id);
CREATE INDEX ix_study_jobs_job_id ON public.study_jobs USING btree (job_id);
ALTER TABLE ONLY public.all_pairs
    ADD CONSTRAINT all_pairs_job_id_fkey FOREIGN KEY (job_id) REFERENCES public.jobs(id);
ALTER TABLE ONLY public.class_flips
    ADD CONSTRAINT class_flips_job_id_fkey FOREIGN KEY (job_id) REFERENCES public.jobs(id);
ALTER TABLE ONLY public.complementarity
    ADD CONSTRAINT complementarity_job_id_fkey FOREIGN KEY (job_id) REFERENCES public.jobs(id);
ALTER TABLE ONLY public.evaluations
    ADD CONSTRAINT evaluations_job_id_fkey FOREIGN KEY (job_id) REFERENCES public.jobs(id);
ALTER TABLE ONLY public.job_needs
    ADD CONSTRAINT job_needs_job_id_fkey FOREIGN KEY (job_id) REFERENCES public.jobs(id);
ALTER TABLE ONLY public.job_needs
    ADD CONSTRAINT job_needs_needs_id_fkey FOREIGN KEY (needs_id) REFERENCES public.jobs(id);
ALTER TABLE ONLY public.study_jobs
    ADD CONSTRAINT study_jobs_job_id_fkey FOREIGN KEY (job_id) REFERENCES public.jobs(id);
ALTER TABLE ONLY public.study_jobs
    ADD CONSTRAINT study_jobs_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(id);
ALTER TABLE ONLY public.trainings
    ADD CONSTRAINT trainings_job_id_fkey FOREIGN KEY (job_id) REFERENCES public.jobs(id);
ALTER TABLE ONLY public.transfer_epochs
    ADD CONSTRAINT transfer_epochs_job_id_fkey FOREIGN KEY (job_id) REFERENCES public.jobs(id);
ALTER TABLE ONLY public.transfers
    ADD CONSTRAINT transfers_job_id_fkey FOREIGN KEY (job_id) REFERENCES public.jobs(id);
