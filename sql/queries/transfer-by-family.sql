-- Transfers by the families of student and teacher, by objective and setting
-- parameters: study
WITH family AS (
    SELECT key,
           CASE WHEN record LIKE '%"family":"cnn"%' THEN 'cnn'
                WHEN record LIKE '%"family":"transformer"%' THEN 'transformer'
                WHEN record LIKE '%"family":"mlp"%' THEN 'mlp'
                ELSE 'hybrid' END AS name
    FROM models
),
{runs}
SELECT runs.study, runs.dataset, runs.objective, runs.setting, fs.name AS student_family, ft.name AS teacher_family,
       COUNT(*) AS pairs, COUNT(DISTINCT runs.student) AS students,
       AVG(CASE WHEN runs.delta_transf > 0 THEN 100.0 ELSE 0.0 END) AS success_rate,
       AVG(runs.delta_transf) AS mean_delta_transf, AVG(runs.knowledge_gain) AS mean_knowledge_gain,
       AVG(runs.knowledge_loss) AS mean_knowledge_loss
FROM runs
JOIN family fs ON fs.key = runs.student_key
JOIN family ft ON ft.key = runs.teacher_key
WHERE runs.multi_teacher = 'single'
GROUP BY runs.study, runs.dataset, runs.objective, runs.setting, fs.name, ft.name
ORDER BY runs.study, runs.dataset, runs.objective, runs.setting, fs.name, ft.name
