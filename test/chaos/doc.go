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
// The second is about shared circuits: four servers that run workers of their own, of which one is sick, call dependencies that
// come and go, are slow, have few places or a rate, with steps half of which are poison, while servers are killed with what they
// have in hand, and frozen, and operators hold, plan windows and release. No step may go behind a circuit that is shut, no more
// may run or start than it lets go, one sick worker and those who take the blame may open nothing, no budget of time may end a
// step while it is suspended, and every task must end. The run goes on until all of that has happened at least once.
//
// The third counts half-open periods: a hundred circuits that turn many times a second, over the same four servers, killed in
// the same way.
package chaos
