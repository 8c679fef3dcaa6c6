// Package chaos holds the chaos test, and nothing else: four servers and eight workers, each a process of its own, on one
// Postgres, while a monkey kills them.
//
// Clients submit graphs to servers chosen at random, operators cancel tasks and repair failed steps, handlers do what a
// seeded plan says: succeed, fail for a while or for good, hang until they are revoked, report too late. Meanwhile the
// monkey deals its acts: kill -9 of a server, of a worker, of a Postgres backend (at which Postgres ends all of them and
// recovers), connections ended by the database, processes frozen for longer than their leases last, and orderly stops.
//
// Then everything is let heal, every task must end, and what clients and workers wrote down with their own hands is held
// against the history that the servers left in the database.
package chaos
