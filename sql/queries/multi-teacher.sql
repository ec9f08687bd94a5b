-- Several teachers against one: each student's single transfers beside its sequential, parallel and soup ones
-- parameters: study
WITH last_stage AS (
    SELECT student_key, objective, MAX(stage) AS stage
    FROM transfers
    WHERE multi_teacher = 'sequential'
    GROUP BY student_key, objective
)
SELECT st.name AS study, t.objective, t.student,
       COUNT(CASE WHEN t.multi_teacher = 'single' THEN 1 END) AS single_runs,
       AVG(CASE WHEN t.multi_teacher = 'single' THEN t.delta_transf END) AS single_mean,
       MIN(CASE WHEN t.multi_teacher = 'single' THEN t.delta_transf END) AS single_min,
       MAX(CASE WHEN t.multi_teacher = 'single' THEN t.delta_transf END) AS single_max,
       AVG(CASE WHEN t.multi_teacher = 'sequential' AND t.stage = l.stage THEN t.delta_transf END) AS sequential,
       AVG(CASE WHEN t.multi_teacher = 'parallel' THEN t.delta_transf END) AS parallel,
       AVG(CASE WHEN t.multi_teacher = 'soup' THEN t.delta_transf END) AS soup
FROM transfers t
JOIN study_jobs sj ON sj.job_id = t.job_id
JOIN studies st ON st.id = sj.study_id
LEFT JOIN last_stage l ON l.student_key = t.student_key AND l.objective = t.objective
WHERE t.delta_transf IS NOT NULL
  AND (CAST(:study AS TEXT) IS NULL OR st.name = CAST(:study AS TEXT))
GROUP BY st.name, t.objective, t.student
HAVING COUNT(CASE WHEN t.multi_teacher <> 'single' THEN 1 END) > 0
ORDER BY st.name, t.objective, t.student
