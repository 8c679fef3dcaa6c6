-- Pauses a handler, behind end_pause.sql in a transaction that has the namespace's pauses for itself.
-- $1 namespace_id int, $2 handler text, $3 since timestamptz, $4 until timestamptz, $5 reason text, $6 actor text
insert into pause (namespace_id, handler, since, until, reason, actor) values ($1, $2, $3, $4, $5, $6)
