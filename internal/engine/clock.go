package engine

import (
	"sync"
	"sync/atomic"
	"time"
)

// clock estimates the database's clock, to sleep by and to tell workers. Nothing is decided by it.
//
// An answer shows the database's time at some instant between the question and the answer. So the offset is one of those that fit all
// of them, and of these the least: an estimate is behind the database rather than ahead of it, by no more than the quickest
// answer took. A slow one, as comes of a busy database, takes nothing away from that. Where the clocks drift apart, or one is set, no
// offset fits all any more: then it is the nearest that fits the last answer.
type clock struct {
	offset atomic.Int64 // what the database's is ahead of this machine's

	mu    sync.Mutex // of learn
	known bool
}

// learn heeds that a question asked at began was just answered, and what time the database had when it was.
func (c *clock) learn(began, database time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	least, most := time.Until(database), database.Sub(began)
	offset := least
	if c.known {
		offset = min(max(time.Duration(c.offset.Load()), least), most)
	}
	c.offset.Store(int64(offset))
	c.known = true
}

// local turns an instant of the database's clock into one of this machine's.
func (c *clock) local(t time.Time) time.Time { return t.Add(-time.Duration(c.offset.Load())) }

// database turns an instant of this machine's clock into one of the database's.
func (c *clock) database(t time.Time) time.Time { return t.Add(time.Duration(c.offset.Load())) }

// Now is the time of the database's clock, as far as this server knows it.
func (e *Engine) Now() time.Time { return e.clock.database(time.Now()) }
