-- Pauses, for people and dashboards.
create or replace view pauses_v as
select
  pause.pause_id,
  namespace.name as namespace,
  nullif(pause.handler, '') as handler,
  pause.ended_at is null and (pause.until is null or pause.until > now()) as in_force,
  pause.reason,
  pause.actor,
  pause.since,
  pause.until,
  coalesce(pause.ended_at, case when pause.until <= now() then pause.until end) as ended_at,
  pause.ended_by,
  pause.end_reason
from pause
join namespace on namespace.namespace_id = pause.namespace_id;
comment on view pauses_v is 'Every pause of a handler or a namespace, those in force and those that are over. Order by pause_id.';
comment on column pauses_v.pause_id is 'Rises.';
comment on column pauses_v.namespace is 'Where it keeps steps back.';
comment on column pauses_v.handler is 'Of which handler. NULL: of all.';
comment on column pauses_v.in_force is 'Whether it keeps steps back now.';
comment on column pauses_v.reason is 'Why.';
comment on column pauses_v.actor is 'Who paused it.';
comment on column pauses_v.since is 'Since when no step of it was dispatched.';
comment on column pauses_v.until is 'When it ends by itself, as it was asked for. NULL: when somebody resumes it.';
comment on column pauses_v.ended_at is 'When it ended. NULL: it is in force.';
comment on column pauses_v.ended_by is 'Who ended it, by resuming or by pausing anew. NULL: nobody, or nobody in particular.';
comment on column pauses_v.end_reason is 'Why it was ended, or "paused anew".';
