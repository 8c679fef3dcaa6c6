-- Pauses: an operator stops the dispatching of a handler, or of a whole namespace, for a while.
--
-- Steps are kept back by the gate, never touched, as behind a circuit: a claim leaves their lanes out. That no server does so too
-- late is decided by the rows of the sessions, which every claim share-locks anyway (claim.sql):
--
--   namespace.pauses        rises with every pause and every resume
--   worker_session.pauses   what namespace.pauses was at the last pause, or when the session was opened
--
-- A claim says up to which number its server knows the pauses, and finds no session that is beyond. A pause raises the number of
-- every open session in its transaction: it waits for the claims under way, and from its COMMIT on only those who know of it
-- are granted anything. A session that opens meanwhile waits for it, or is waited for (lock_worker.sql, lock_pauses.sql).

create table pause (
  pause_id     bigint generated always as identity primary key,
  namespace_id int not null,
  handler      text not null,                  -- '': every handler of the namespace
  since        timestamptz not null,           -- clock_timestamp(), read while every open session was locked: what was granted
                                               -- before it was granted earlier
  until        timestamptz,                    -- when it ends by itself; NULL: when somebody resumes the handler
  reason       text not null,
  actor        text,
  ended_at     timestamptz,                    -- NULL: in force, or over since until
  ended_by     text,                           -- who resumed it, or paused it anew
  end_reason   text
);
comment on table pause is 'Pauses of handlers, and the record of those that are over: a row is changed once, when it ends.';
create unique index pause_standing on pause (namespace_id, handler) where ended_at is null;

alter table namespace add pauses int not null default 0;
alter table worker_session add pauses int not null default 0;

comment on column step_readiness.ready_for_execution is 'Would be granted to the next worker with room: retry_eligible, dependencies satisfied, no live lease, not deferred, its handler not paused, and its circuit lets it.';
comment on column step_readiness.waiting_for is 'Why it is not running: dependencies, backoff, not_before, paused (its handler or its namespace is paused, or its circuit is held), circuit (open, probing or recovering), limit (of its circuit), worker (nobody subscribes to its handler), capacity (all who do are busy, or it is about to go) or operator (failed for good). NULL: it runs or has ended.';
comment on column task_execution.waiting_for_retry_steps is 'Failed and not due yet, or kept back by their circuit or by a pause.';

alter table pause owner to tasker_owner;
grant select, insert, update, delete on pause to tasker_runtime;

---- create above / drop below ----

alter table worker_session drop pauses;
alter table namespace drop pauses;
drop table pause cascade;
