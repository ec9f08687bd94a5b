-- Several teachers against one: sequential, parallel and soup transfers beside the single ones of the same teachers
-- parameters: study
WITH runs AS (
    SELECT st.name AS study, t.dataset, t.dataset_key, t.objective, t.student, t.student_key, t.teacher, t.teacher_key,
           t.multi_teacher, t.delta_transf,
           DENSE_RANK() OVER (
               PARTITION BY st.name, t.dataset, t.objective
               ORDER BY t.reading DESC, t.batchnorm DESC, t.epochs, t.lr, t.temperature, t.top_k, t.batch_size,
                        t.momentum, t.weight_decay, t.kl_weight, t.label_smoothing, t.warmup_epochs, t.flips, t.views,
                        t.augment, t.crop, t.crop_pct, t.mcl_tau, t.mcl_every, t.precision, t.grad_clip
           ) AS setting
    FROM transfers t
    JOIN study_jobs sj ON sj.job_id = t.job_id
    JOIN studies st ON st.id = sj.study_id
    WHERE t.delta_transf IS NOT NULL
      AND (CAST(:study AS TEXT) IS NULL OR st.name = CAST(:study AS TEXT))
),
teams AS (
    SELECT study, dataset, dataset_key, objective, setting, student, student_key, teacher, teacher_key,
           AVG(CASE WHEN multi_teacher = 'sequential' THEN delta_transf END) AS sequential,
           AVG(CASE WHEN multi_teacher = 'parallel' THEN delta_transf END) AS parallel,
           AVG(CASE WHEN multi_teacher = 'soup' THEN delta_transf END) AS soup
    FROM runs s
    WHERE multi_teacher <> 'single'
      -- a stage of a longer sequence is no team
      AND NOT (multi_teacher = 'sequential' AND EXISTS (
          SELECT 1 FROM runs l
          WHERE l.multi_teacher = 'sequential' AND l.study = s.study AND l.dataset_key = s.dataset_key
            AND l.objective = s.objective AND l.setting = s.setting AND l.student_key = s.student_key
            AND SUBSTR(l.teacher_key, 1, LENGTH(s.teacher_key) + 1) = s.teacher_key || '+'
      ))
    GROUP BY study, dataset, dataset_key, objective, setting, student, student_key, teacher, teacher_key
)
SELECT teams.study, teams.dataset, teams.objective, teams.setting, teams.student, teams.teacher AS teachers,
       COUNT(single.delta_transf) AS single_runs, AVG(single.delta_transf) AS single_mean,
       MIN(single.delta_transf) AS single_min, MAX(single.delta_transf) AS single_max,
       MAX(teams.sequential) AS sequential, MAX(teams.parallel) AS parallel, MAX(teams.soup) AS soup
FROM teams
LEFT JOIN runs single
       ON single.multi_teacher = 'single' AND single.study = teams.study AND single.dataset_key = teams.dataset_key
      AND single.objective = teams.objective AND single.setting = teams.setting
      AND single.student_key = teams.student_key
      AND '+' || teams.teacher_key || '+' LIKE '%+' || single.teacher_key || '+%'
GROUP BY teams.study, teams.dataset, teams.objective, teams.setting, teams.student, teams.student_key, teams.teacher,
         teams.teacher_key
ORDER BY teams.study, teams.dataset, teams.objective, teams.setting, teams.student, teams.teacher
