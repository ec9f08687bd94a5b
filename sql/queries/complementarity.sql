-- Pairs by complementary knowledge, highest first; rho in % of validation samples
-- parameters: study, student, teacher
SELECT st.name AS study, c.dataset, c.teacher, c.student, c.n, c.acc_teacher, c.acc_student, c.delta_acc, c.rho_pos,
       c.rho_neg, c.kappa, c.entropy, c.entropy_null
FROM complementarity c
JOIN study_jobs sj ON sj.job_id = c.job_id
JOIN studies st ON st.id = sj.study_id
WHERE (CAST(:study AS TEXT) IS NULL OR st.name = CAST(:study AS TEXT))
  AND (CAST(:student AS TEXT) IS NULL OR c.student = CAST(:student AS TEXT))
  AND (CAST(:teacher AS TEXT) IS NULL OR c.teacher = CAST(:teacher AS TEXT))
ORDER BY st.name, c.rho_pos DESC, c.teacher, c.student
