package engine

import (
	"sync"
	"sync/atomic"
	"time"
)

// clock estimates the database's clock, to sleep by and to tell workers. What happens to a step is not decided by it.
//
// An answer shows the database's time at some instant between the question and the answer. The offset is the largest that the end of
// a question's wait has shown, for that is the least it can be: so an estimate is behind the database rather than ahead of it, by as much
// as the quickest answer took, and a slow one, as comes of a busy database, takes nothing away from it. Since clocks drift apart, an
// older answer counts for less by mostDrift. One that does not fit the last answer at all is of a clock that was set since.
type clock struct {
	offset atomic.Int64 // what the database's is ahead of this machine's

	mu sync.Mutex // of learn
	at time.Time  // of the last answer
}

// mostDrift is how much two clocks of today differ in their pace, in millionths.
const mostDrift = 100

// learn heeds that a question asked at began was just answered, and what time the database had when it was.
func (c *clock) learn(began, database time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	least, most := database.Sub(now), database.Sub(began)
	offset := time.Duration(c.offset.Load()) - now.Sub(c.at)/1e6*mostDrift
	if c.at.IsZero() || offset < least || offset > most {
		offset = least
	}
	c.offset.Store(int64(offset))
	c.at = now
}

// local turns an instant of the database's clock into one of this machine's.
func (c *clock) local(t time.Time) time.Time { return t.Add(-time.Duration(c.offset.Load())) }

// database turns an instant of this machine's clock into one of the database's.
func (c *clock) database(t time.Time) time.Time { return t.Add(time.Duration(c.offset.Load())) }

// Now is the time of the database's clock, as far as this server knows it.
func (e *Engine) Now() time.Time { return e.clock.database(time.Now()) }

// LearnClock heeds that somebody else's question to the database, asked at began, was just answered, and what time it had then.
func (e *Engine) LearnClock(began, database time.Time) { e.clock.learn(began, database) }
