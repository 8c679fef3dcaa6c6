-- How many leases each of the sessions holds: capacity freed by a report that landed elsewhere shows here.
-- $1 session_id int[]
select l.session_id, count(*)::int as leases from lease l where l.session_id = any ($1) group by l.session_id
