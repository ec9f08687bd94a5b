BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE all_pairs (
	id INTEGER NOT NULL, 
	job_id INTEGER NOT NULL, 
	dataset TEXT, 
	n_models BIGINT, 
	n_pairs BIGINT, 
	file TEXT, 
	seconds DOUBLE, 
	PRIMARY KEY (id), 
	UNIQUE (job_id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id)
);
CREATE TABLE attempts (
	id INTEGER NOT NULL, 
	job_id INTEGER NOT NULL, 
	fence INTEGER NOT NULL, 
	worker TEXT NOT NULL, 
	started_at DOUBLE NOT NULL, 
	ended_at DOUBLE NOT NULL, 
	outcome TEXT NOT NULL, 
	progress TEXT, 
	error TEXT, 
	message TEXT, 
	traceback TEXT, 
	error_group TEXT, 
	PRIMARY KEY (id), 
	UNIQUE (job_id, fence)
);
INSERT INTO "attempts" VALUES(1,1,1,'old-worker',1700000010.0,1700000020.0,'done',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "attempts" VALUES(2,5,1,'old-worker',1700000010.0,1700000020.0,'failed',NULL,'ValueError','wrong','trace','abc');
CREATE TABLE class_flips (
	id INTEGER NOT NULL, 
	job_id INTEGER NOT NULL, 
	dataset TEXT, 
	teacher TEXT, 
	student TEXT, 
	class_index BIGINT NOT NULL, 
	class_name TEXT, 
	n BIGINT, 
	positive_flips BIGINT, 
	negative_flips BIGINT, 
	PRIMARY KEY (id), 
	UNIQUE (job_id, class_index), 
	FOREIGN KEY(job_id) REFERENCES jobs (id)
);
CREATE TABLE complementarity (
	id INTEGER NOT NULL, 
	job_id INTEGER NOT NULL, 
	dataset TEXT, 
	dataset_key TEXT, 
	teacher TEXT, 
	student TEXT, 
	teacher_key TEXT, 
	student_key TEXT, 
	n BIGINT, 
	acc_teacher DOUBLE, 
	acc_student DOUBLE, 
	delta_acc DOUBLE, 
	rho_pos DOUBLE, 
	rho_neg DOUBLE, 
	n_positive_flips BIGINT, 
	n_negative_flips BIGINT, 
	agreement DOUBLE, 
	error_overlap DOUBLE, 
	kappa DOUBLE, 
	entropy DOUBLE, 
	entropy_null DOUBLE, 
	top2_classes DOUBLE, 
	top5_classes DOUBLE, 
	top20_classes DOUBLE, 
	top50_classes DOUBLE, 
	top2_similarity DOUBLE, 
	top5_similarity DOUBLE, 
	top20_similarity DOUBLE, 
	top50_similarity DOUBLE, 
	similarity TEXT, 
	source TEXT, 
	PRIMARY KEY (id), 
	UNIQUE (job_id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id)
);
CREATE TABLE datasets (
	"key" TEXT NOT NULL, 
	name TEXT NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
CREATE TABLE evaluations (
	id INTEGER NOT NULL, 
	job_id INTEGER NOT NULL, 
	dataset TEXT, 
	dataset_key TEXT, 
	model TEXT, 
	model_key TEXT, 
	split TEXT, 
	n BIGINT, 
	acc DOUBLE, 
	loss DOUBLE, 
	seconds DOUBLE, 
	images_per_s DOUBLE, 
	device TEXT, 
	source TEXT, 
	PRIMARY KEY (id), 
	UNIQUE (job_id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id)
);
INSERT INTO "evaluations" VALUES(1,1,'digits',NULL,'m',NULL,NULL,10,93.5,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE job_needs (
	job_id INTEGER NOT NULL, 
	needs_id INTEGER NOT NULL, 
	PRIMARY KEY (job_id, needs_id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id), 
	FOREIGN KEY(needs_id) REFERENCES jobs (id)
);
INSERT INTO "job_needs" VALUES(4,2);
INSERT INTO "job_needs" VALUES(4,3);
CREATE TABLE jobs (
	id INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	digest TEXT NOT NULL, 
	spec TEXT NOT NULL, 
	state TEXT NOT NULL, 
	paused BOOLEAN DEFAULT 0 NOT NULL, 
	priority INTEGER DEFAULT '0' NOT NULL, 
	estimate_s DOUBLE DEFAULT '60' NOT NULL, 
	teacher TEXT, 
	student TEXT, 
	needs_open INTEGER DEFAULT '0' NOT NULL, 
	attempts INTEGER DEFAULT '0' NOT NULL, 
	crashes INTEGER DEFAULT '0' NOT NULL, 
	fence INTEGER DEFAULT '0' NOT NULL, 
	not_before DOUBLE DEFAULT '0' NOT NULL, 
	worker TEXT, 
	lease_until DOUBLE, 
	created_at DOUBLE NOT NULL, 
	changed_at DOUBLE NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (digest, kind)
);
INSERT INTO "jobs" VALUES(1,'logits','8fd1f4a63baa973702d08cccc30be69c','{"number":1}','done',0,0,61.0,'t1',NULL,0,1,0,1,0.0,'old-worker',NULL,1700000000.0,1700000050.0);
INSERT INTO "jobs" VALUES(2,'logits','a5b614dea525c7c3c14792b3aed19529','{"number":2}','running',0,0,62.0,'t2',NULL,0,0,0,1,0.0,'old-worker',1700000100.0,1700000000.0,1700000050.0);
INSERT INTO "jobs" VALUES(3,'logits','4164182e4258b29414cc5af11d73f70d','{"number":3}','ready',0,0,63.0,'t3',NULL,0,0,0,0,0.0,NULL,NULL,1700000000.0,1700000050.0);
INSERT INTO "jobs" VALUES(4,'transfer','d64ebc29fc4e7b2cfd3c78a30fa50d8b','{"number":4}','blocked',0,0,64.0,'t4',NULL,2,0,0,0,0.0,NULL,NULL,1700000000.0,1700000050.0);
INSERT INTO "jobs" VALUES(5,'logits','865bba042c71e40e5ec5a1ba5ceaa5df','{"number":5}','failed',0,0,65.0,'t5',NULL,0,1,0,1,0.0,'old-worker',NULL,1700000000.0,1700000050.0);
CREATE TABLE models (
	"key" TEXT NOT NULL, 
	name TEXT NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
CREATE TABLE studies (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	spec TEXT NOT NULL, 
	paused BOOLEAN DEFAULT 0 NOT NULL, 
	created_at DOUBLE NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
INSERT INTO "studies" VALUES(1,'old','{"seed":7}',0,1700000000.0);
CREATE TABLE study_jobs (
	study_id INTEGER NOT NULL, 
	job_id INTEGER NOT NULL, 
	PRIMARY KEY (study_id, job_id), 
	FOREIGN KEY(study_id) REFERENCES studies (id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id)
);
INSERT INTO "study_jobs" VALUES(1,1);
INSERT INTO "study_jobs" VALUES(1,2);
INSERT INTO "study_jobs" VALUES(1,3);
INSERT INTO "study_jobs" VALUES(1,4);
INSERT INTO "study_jobs" VALUES(1,5);
CREATE TABLE trainings (
	id INTEGER NOT NULL, 
	job_id INTEGER NOT NULL, 
	dataset TEXT, 
	model TEXT, 
	model_key TEXT, 
	scope TEXT, 
	n BIGINT, 
	epochs BIGINT, 
	loss DOUBLE, 
	seconds DOUBLE, 
	PRIMARY KEY (id), 
	UNIQUE (job_id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id)
);
CREATE TABLE transfer_epochs (
	id INTEGER NOT NULL, 
	job_id INTEGER NOT NULL, 
	dataset TEXT, 
	student TEXT, 
	teacher TEXT, 
	objective TEXT, 
	stage BIGINT, 
	epoch BIGINT NOT NULL, 
	loss DOUBLE, 
	acc DOUBLE, 
	delta_transf DOUBLE, 
	seconds DOUBLE, 
	PRIMARY KEY (id), 
	UNIQUE (job_id, epoch), 
	FOREIGN KEY(job_id) REFERENCES jobs (id)
);
CREATE TABLE transfers (
	id INTEGER NOT NULL, 
	job_id INTEGER NOT NULL, 
	dataset TEXT, 
	dataset_key TEXT, 
	student TEXT, 
	teacher TEXT, 
	student_key TEXT, 
	teacher_key TEXT, 
	objective TEXT, 
	epochs BIGINT, 
	batch_size BIGINT, 
	lr DOUBLE, 
	momentum DOUBLE, 
	weight_decay DOUBLE, 
	temperature DOUBLE, 
	kl_weight DOUBLE, 
	label_smoothing DOUBLE, 
	top_k BIGINT, 
	warmup_epochs BIGINT, 
	flips TEXT, 
	views BIGINT, 
	augment TEXT, 
	crop TEXT, 
	batchnorm TEXT, 
	reading TEXT, 
	mcl_tau DOUBLE, 
	mcl_every BIGINT, 
	precision TEXT, 
	channels_last BOOLEAN, 
	grad_clip DOUBLE, 
	micro_batch BIGINT, 
	deterministic BOOLEAN, 
	compile BOOLEAN, 
	loader TEXT, 
	multi_teacher TEXT, 
	teacher_order TEXT, 
	seed BIGINT, 
	n BIGINT, 
	n_train BIGINT, 
	acc_teacher DOUBLE, 
	acc_before DOUBLE, 
	acc_after DOUBLE, 
	delta_transf DOUBLE, 
	delta_transf_low DOUBLE, 
	delta_transf_high DOUBLE, 
	mcnemar_p DOUBLE, 
	knowledge_gain DOUBLE, 
	knowledge_loss DOUBLE, 
	rho_pos_before DOUBLE, 
	rho_pos_after DOUBLE, 
	rho_neg_before DOUBLE, 
	rho_neg_after DOUBLE, 
	transfer_rate_top2 DOUBLE, 
	transfer_rate_top5 DOUBLE, 
	transfer_rate_top20 DOUBLE, 
	transfer_rate_top50 DOUBLE, 
	transfer_rate_top100 DOUBLE, 
	transfer_rate_strict_top2 DOUBLE, 
	transfer_rate_strict_top5 DOUBLE, 
	transfer_rate_strict_top20 DOUBLE, 
	transfer_rate_strict_top50 DOUBLE, 
	transfer_rate_strict_top100 DOUBLE, 
	dp_pos_to_teacher DOUBLE, 
	dp_neg_to_teacher DOUBLE, 
	teacher_share DOUBLE, 
	diverged BOOLEAN, 
	diverged_step BIGINT, 
	steps BIGINT, 
	seconds DOUBLE, 
	images_per_s DOUBLE, 
	peak_memory BIGINT, 
	device TEXT, 
	host TEXT, 
	versions TEXT, 
	predictions TEXT, 
	weights TEXT, 
	PRIMARY KEY (id), 
	UNIQUE (job_id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id)
);
CREATE TABLE workers (
	id TEXT NOT NULL, 
	host TEXT NOT NULL, 
	pid INTEGER NOT NULL, 
	slurm_job TEXT, 
	log TEXT, 
	device TEXT, 
	started_at DOUBLE NOT NULL, 
	beat_at DOUBLE NOT NULL, 
	ended_at DOUBLE, 
	PRIMARY KEY (id)
);
INSERT INTO "workers" VALUES('old-worker','node1',77,NULL,NULL,NULL,1700000000.0,1700000050.0,NULL);
CREATE INDEX ix_job_needs_needs_id ON job_needs (needs_id);
CREATE INDEX ix_study_jobs_job_id ON study_jobs (job_id);
CREATE INDEX ix_attempts_error_group ON attempts (error_group);
COMMIT;
