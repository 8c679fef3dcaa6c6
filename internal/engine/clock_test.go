package engine

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// ask has the clock learn of an answer that is so far ahead of this machine's clock, and takes so long there and back.
func (c *clock) ask(ahead, there, back time.Duration) {
	began := time.Now()
	time.Sleep(there)
	database := time.Now().Add(ahead)
	time.Sleep(back)
	c.learn(began, database)
}

// A slow answer does not have anybody sleep longer: what is known of the clock from quick ones stays.
func TestASlowAnswerDoesNotSetTheClockBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ahead = 3 * time.Hour
		var c clock
		c.ask(ahead, time.Millisecond, 80*time.Millisecond)
		c.ask(ahead, 2*time.Millisecond, time.Millisecond)
		for range 100 {
			c.ask(ahead, rand.N(time.Second), time.Millisecond+rand.N(time.Second))
			late := time.Until(c.local(time.Now().Add(ahead)))
			if late < 0 || late > time.Millisecond {
				t.Fatalf("the database's clock is taken to be %v behind what it is, want a millisecond at most", late)
			}
		}
	})
}

// A clock that was set is known as it is from the next answer on.
func TestAClockThatWasSetIsKnownByTheNextAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c clock
		for _, ahead := range []time.Duration{time.Minute, -time.Hour, time.Hour, time.Hour - 10*time.Millisecond, time.Hour + 10*time.Millisecond} {
			there, back := time.Millisecond, 2*time.Millisecond
			c.ask(ahead, there, back)
			if off := c.database(time.Now()).Sub(time.Now().Add(ahead)); off < -back || off > there {
				t.Errorf("the clock that is %v ahead is off by %v", ahead, off)
			}
		}
	})
}
