// Package chaos holds the chaos tests, and nothing else.
//
// The first has four servers and eight workers, each a process of its own, on one Postgres, while a monkey kills them.
//
// Clients submit graphs to servers chosen at random, operators cancel tasks and repair failed steps, handlers do what a
// seeded plan says: succeed, fail for a while or for good, hang until they are revoked, report too late. Meanwhile the
// monkey deals its acts: kill -9 of a server, of a worker, of a Postgres backend (at which Postgres ends all of them and
// recovers), connections ended by the database, processes frozen for longer than their leases last, and orderly stops.
//
// Then everything is let heal, every task must end, and what clients and workers wrote down with their own hands is held
// against the history that the servers left in the database.
//
// The second is about shared circuits: four servers that run workers of their own, of which one is sick, call a dependency that
// comes and goes, with steps half of which are poison, while servers are killed and frozen and an operator holds and releases.
// No step may go behind an open circuit, no more probes than allowed may run, one sick worker and steps that take the blame may
// open nothing, and every task must end.
package chaos
