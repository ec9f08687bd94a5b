-- Teachers by the mean gain of their students, for each objective; with :student, for that student alone
-- parameters: study, student, objective
SELECT st.name AS study, t.objective, t.teacher, COUNT(*) AS students, AVG(t.acc_teacher) AS acc_teacher,
       AVG(t.delta_transf) AS mean_delta_transf, MIN(t.delta_transf) AS min_delta_transf,
       MAX(t.delta_transf) AS max_delta_transf,
       AVG(CASE WHEN t.delta_transf > 0 THEN 100.0 ELSE 0.0 END) AS success_rate,
       AVG(t.rho_pos_before) AS mean_rho_pos_before
FROM transfers t
JOIN study_jobs sj ON sj.job_id = t.job_id
JOIN studies st ON st.id = sj.study_id
WHERE t.multi_teacher = 'single' AND t.delta_transf IS NOT NULL
  AND (CAST(:study AS TEXT) IS NULL OR st.name = CAST(:study AS TEXT))
  AND (CAST(:student AS TEXT) IS NULL OR t.student = CAST(:student AS TEXT))
  AND (CAST(:objective AS TEXT) IS NULL OR t.objective = CAST(:objective AS TEXT))
GROUP BY st.name, t.objective, t.teacher
ORDER BY st.name, t.objective, mean_delta_transf DESC, t.teacher
