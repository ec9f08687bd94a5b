-- Several teachers compared with one: sequential, parallel and soup transfers and the single ones of the same teachers
-- parameters: study
WITH {runs},
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
