-- Share of transfers that gain accuracy, by objective and setting: over all pairs, and the median over students
-- parameters: study
WITH {runs},
single AS (
    SELECT runs.*, CASE WHEN delta_transf > 0 THEN 100.0 ELSE 0.0 END AS success
    FROM runs
    WHERE multi_teacher = 'single'
),
students AS (
    SELECT study, dataset, objective, setting, student, AVG(success) AS success
    FROM single
    GROUP BY study, dataset, objective, setting, student
),
ranked AS (
    SELECT study, dataset, objective, setting, success,
           ROW_NUMBER() OVER (PARTITION BY study, dataset, objective, setting ORDER BY success) AS place,
           COUNT(*) OVER (PARTITION BY study, dataset, objective, setting) AS students
    FROM students
),
medians AS (
    SELECT study, dataset, objective, setting, MAX(students) AS students, AVG(success) AS median_success_rate
    FROM ranked
    WHERE place IN ((students + 1) / 2, (students + 2) / 2)
    GROUP BY study, dataset, objective, setting
),
pooled AS (
    SELECT study, dataset, objective, setting, MAX(reading) AS reading, MAX(batchnorm) AS batchnorm,
           MAX(epochs) AS epochs, MAX(lr) AS lr, MAX(temperature) AS temperature, MAX(top_k) AS top_k,
           COUNT(*) AS pairs, AVG(success) AS success_rate, AVG(delta_transf) AS mean_delta_transf, MIN(delta_transf) AS min_delta_transf,
           MAX(delta_transf) AS max_delta_transf
    FROM single
    GROUP BY study, dataset, objective, setting
)
SELECT pooled.study, pooled.dataset, pooled.objective, pooled.setting, pooled.reading, pooled.batchnorm, pooled.epochs,
       pooled.lr, pooled.temperature, pooled.top_k, pooled.pairs, medians.students, pooled.success_rate,
       medians.median_success_rate, pooled.mean_delta_transf, pooled.min_delta_transf, pooled.max_delta_transf
FROM pooled
JOIN medians ON medians.study = pooled.study AND medians.dataset = pooled.dataset
            AND medians.objective = pooled.objective AND medians.setting = pooled.setting
ORDER BY pooled.study, pooled.dataset, medians.median_success_rate DESC, pooled.objective, pooled.setting
