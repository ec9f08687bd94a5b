-- Transfers by the families of student and teacher
-- parameters: study
WITH family AS (
    SELECT key,
           CASE WHEN record LIKE '%"family":"cnn"%' THEN 'cnn'
                WHEN record LIKE '%"family":"transformer"%' THEN 'transformer'
                WHEN record LIKE '%"family":"mlp"%' THEN 'mlp'
                ELSE 'hybrid' END AS name
    FROM models
)
SELECT st.name AS study, t.objective, fs.name AS student_family, ft.name AS teacher_family, COUNT(*) AS pairs,
       COUNT(DISTINCT t.student) AS students,
       AVG(CASE WHEN t.delta_transf > 0 THEN 100.0 ELSE 0.0 END) AS success_rate,
       AVG(t.delta_transf) AS mean_delta_transf, AVG(t.knowledge_gain) AS mean_knowledge_gain,
       AVG(t.knowledge_loss) AS mean_knowledge_loss
FROM transfers t
JOIN study_jobs sj ON sj.job_id = t.job_id
JOIN studies st ON st.id = sj.study_id
JOIN family fs ON fs.key = t.student_key
JOIN family ft ON ft.key = t.teacher_key
WHERE t.multi_teacher = 'single' AND t.delta_transf IS NOT NULL
  AND (CAST(:study AS TEXT) IS NULL OR st.name = CAST(:study AS TEXT))
GROUP BY st.name, t.objective, fs.name, ft.name
ORDER BY st.name, t.objective, fs.name, ft.name
