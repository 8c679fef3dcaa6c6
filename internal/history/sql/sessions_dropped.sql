-- Whether retention has forgotten sessions.
select exists (select from history where kind = 'retention' and reason = 'worker_session')
