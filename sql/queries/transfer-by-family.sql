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
runs AS (
    SELECT st.name AS study, t.dataset, t.objective, t.student, t.student_key, t.teacher_key, t.delta_transf,
           t.knowledge_gain, t.knowledge_loss,
           DENSE_RANK() OVER (
               PARTITION BY st.name, t.dataset, t.objective
               ORDER BY t.reading DESC, t.batchnorm DESC, t.epochs, t.lr, t.temperature, t.top_k, t.batch_size,
                        t.momentum, t.weight_decay, t.kl_weight, t.label_smoothing, t.warmup_epochs, t.flips, t.views,
                        t.augment, t.crop, t.crop_pct, t.mcl_tau, t.mcl_every, t.precision, t.grad_clip
           ) AS setting
    FROM transfers t
    JOIN study_jobs sj ON sj.job_id = t.job_id
    JOIN studies st ON st.id = sj.study_id
    WHERE t.multi_teacher = 'single' AND t.delta_transf IS NOT NULL
      AND (CAST(:study AS TEXT) IS NULL OR st.name = CAST(:study AS TEXT))
)
SELECT runs.study, runs.dataset, runs.objective, runs.setting, fs.name AS student_family, ft.name AS teacher_family,
       COUNT(*) AS pairs, COUNT(DISTINCT runs.student) AS students,
       AVG(CASE WHEN runs.delta_transf > 0 THEN 100.0 ELSE 0.0 END) AS success_rate,
       AVG(runs.delta_transf) AS mean_delta_transf, AVG(runs.knowledge_gain) AS mean_knowledge_gain,
       AVG(runs.knowledge_loss) AS mean_knowledge_loss
FROM runs
JOIN family fs ON fs.key = runs.student_key
JOIN family ft ON ft.key = runs.teacher_key
GROUP BY runs.study, runs.dataset, runs.objective, runs.setting, fs.name, ft.name
ORDER BY runs.study, runs.dataset, runs.objective, runs.setting, fs.name, ft.name
