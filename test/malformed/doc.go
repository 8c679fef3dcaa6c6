// Package malformed holds a test and nothing else: a server whose database is full of life is sent requests that are wrong
// in one place or all over, about tasks, steps and leases that there are. None may be answered with an internal error, every
// answer must be one that the contract designs, and when it is over the record must be as sound as if nobody had tried.
package malformed
