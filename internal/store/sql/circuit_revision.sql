-- The oldest transaction under way, as a watcher's place in the record. It is read before the events are.
select pg_snapshot_xmin(pg_current_snapshot())::text
