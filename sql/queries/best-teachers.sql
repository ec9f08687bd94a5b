-- Teachers by the mean gain of their students, by objective and setting; with :student, for that student alone
-- parameters: study, student, objective
WITH runs AS (
    SELECT st.name AS study, t.dataset, t.objective, t.teacher, t.student, t.acc_teacher, t.delta_transf,
           t.rho_pos_before,
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
SELECT study, dataset, objective, setting, teacher, COUNT(DISTINCT student) AS students,
       AVG(acc_teacher) AS acc_teacher, AVG(delta_transf) AS mean_delta_transf, MIN(delta_transf) AS min_delta_transf,
       MAX(delta_transf) AS max_delta_transf,
       AVG(CASE WHEN delta_transf > 0 THEN 100.0 ELSE 0.0 END) AS success_rate,
       AVG(rho_pos_before) AS mean_rho_pos_before
FROM runs
WHERE (CAST(:student AS TEXT) IS NULL OR student = CAST(:student AS TEXT))
  AND (CAST(:objective AS TEXT) IS NULL OR objective = CAST(:objective AS TEXT))
GROUP BY study, dataset, objective, setting, teacher
ORDER BY study, dataset, objective, setting, mean_delta_transf DESC, teacher
