-- Models by accuracy on each split, the best first
-- parameters: study, split
SELECT st.name AS study, e.dataset, e.split, e.model, e.acc, e.n, e.loss, e.images_per_s, e.device
FROM evaluations e
JOIN study_jobs sj ON sj.job_id = e.job_id
JOIN studies st ON st.id = sj.study_id
WHERE (CAST(:study AS TEXT) IS NULL OR st.name = CAST(:study AS TEXT))
  AND (CAST(:split AS TEXT) IS NULL OR e.split = CAST(:split AS TEXT))
ORDER BY st.name, e.dataset, e.split, e.acc DESC, e.model
