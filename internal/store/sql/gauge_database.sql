-- What is the same for all lanes, for metrics. Takes no locks.
--
-- The oldest snapshot keeps dead rows of the small, busy tables from being removed. A session sees only the snapshots of
-- roles it belongs to, and those of all with pg_read_all_stats.
select
  (select count(*) from lease) as leases,
  coalesce(greatest(
    (select max(age(backend_xmin)) from pg_stat_activity where backend_xmin is not null),
    (select max(age(transaction)) from pg_prepared_xacts),
    (select max(greatest(age(xmin), age(catalog_xmin))) from pg_replication_slots)
  ), 0)::bigint as xmin_age
