-- The tokens of the leases that sessions hold: what their server believes beyond that was concluded elsewhere.
-- $1 session_id int[]
select l.token from lease l where l.session_id = any ($1)
