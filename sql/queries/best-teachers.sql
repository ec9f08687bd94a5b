-- Teachers by the mean gain of their students, by objective and setting; with :student, for that student only
-- parameters: study, student, objective
WITH {runs}
SELECT study, dataset, objective, setting, teacher, COUNT(DISTINCT student) AS students,
       AVG(acc_teacher) AS acc_teacher, AVG(delta_transf) AS mean_delta_transf, MIN(delta_transf) AS min_delta_transf,
       MAX(delta_transf) AS max_delta_transf,
       AVG(CASE WHEN delta_transf > 0 THEN 100.0 ELSE 0.0 END) AS success_rate,
       AVG(rho_pos_before) AS mean_rho_pos_before
FROM runs
WHERE multi_teacher = 'single'
  AND (CAST(:student AS TEXT) IS NULL OR student = CAST(:student AS TEXT))
  AND (CAST(:objective AS TEXT) IS NULL OR objective = CAST(:objective AS TEXT))
GROUP BY study, dataset, objective, setting, teacher
ORDER BY study, dataset, objective, setting, mean_delta_transf DESC, teacher
