-- Share of transfers that gain accuracy, by objective: over all pairs, and the median over students as the paper counts it
-- parameters: study
WITH runs AS (
    SELECT st.name AS study, t.objective, t.reading, t.batchnorm, t.student, t.delta_transf,
           CASE WHEN t.delta_transf > 0 THEN 100.0 ELSE 0.0 END AS success
    FROM transfers t
    JOIN study_jobs sj ON sj.job_id = t.job_id
    JOIN studies st ON st.id = sj.study_id
    WHERE t.multi_teacher = 'single' AND t.delta_transf IS NOT NULL
      AND (CAST(:study AS TEXT) IS NULL OR st.name = CAST(:study AS TEXT))
),
students AS (
    SELECT study, objective, reading, batchnorm, student, AVG(success) AS success
    FROM runs
    GROUP BY study, objective, reading, batchnorm, student
),
ranked AS (
    SELECT study, objective, reading, batchnorm, success,
           ROW_NUMBER() OVER (PARTITION BY study, objective, reading, batchnorm ORDER BY success) AS place,
           COUNT(*) OVER (PARTITION BY study, objective, reading, batchnorm) AS students
    FROM students
),
medians AS (
    SELECT study, objective, reading, batchnorm, MAX(students) AS students, AVG(success) AS median_success_rate
    FROM ranked
    WHERE place IN ((students + 1) / 2, (students + 2) / 2)
    GROUP BY study, objective, reading, batchnorm
),
pooled AS (
    SELECT study, objective, reading, batchnorm, COUNT(*) AS pairs, AVG(success) AS success_rate,
           AVG(delta_transf) AS mean_delta_transf, MIN(delta_transf) AS min_delta_transf,
           MAX(delta_transf) AS max_delta_transf
    FROM runs
    GROUP BY study, objective, reading, batchnorm
)
SELECT pooled.study, pooled.objective, pooled.reading, pooled.batchnorm, pooled.pairs, medians.students,
       pooled.success_rate, medians.median_success_rate, pooled.mean_delta_transf, pooled.min_delta_transf,
       pooled.max_delta_transf
FROM pooled
JOIN medians ON medians.study = pooled.study AND medians.objective = pooled.objective
            AND medians.reading = pooled.reading AND medians.batchnorm = pooled.batchnorm
ORDER BY pooled.study, medians.median_success_rate DESC, pooled.objective, pooled.reading, pooled.batchnorm
