-- Transfers with a significant gain or loss: McNemar's test at p < 0.05, with the bootstrap interval
-- parameters: study, objective
SELECT st.name AS study, t.dataset, t.objective, t.student, t.teacher, t.reading, t.batchnorm, t.epochs, t.lr,
       t.temperature, t.top_k, t.n, t.acc_before, t.acc_after, t.delta_transf, t.delta_transf_low, t.delta_transf_high,
       t.mcnemar_p
FROM transfers t
JOIN study_jobs sj ON sj.job_id = t.job_id
JOIN studies st ON st.id = sj.study_id
WHERE t.mcnemar_p < 0.05
  AND (CAST(:study AS TEXT) IS NULL OR st.name = CAST(:study AS TEXT))
  AND (CAST(:objective AS TEXT) IS NULL OR t.objective = CAST(:objective AS TEXT))
ORDER BY st.name, t.dataset, t.delta_transf DESC, t.objective, t.student, t.teacher, t.job_id
