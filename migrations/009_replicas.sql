-- Servers say that they are alive, and with themselves all the sessions that they have: one row each, whatever the number of
-- their sessions.
--
-- A session that is not closed is alive while the later of its own seen_at and its server's is younger than store.SessionLiveFor.
-- Without a row of its server, as under the release before this one, its own seen_at counts alone.

create table replica (
  replica_id uuid primary key,
  started_at timestamptz not null,
  seen_at    timestamptz not null              -- renewed every few seconds (tick.sql)
) with (fillfactor = 50);
comment on table replica is 'Servers: each says here that it is alive, for all worker sessions that it has. A row outlives its server until retention forgets the sessions.';

comment on column worker_session.seen_at is 'When it was opened, last. While it is open, replica.seen_at of its server tells of later signs of life.';

alter table replica owner to tasker_owner;
grant select, insert, update, delete on replica to tasker_runtime;

---- create above / drop below ----

comment on column worker_session.seen_at is null;
drop table replica cascade;
