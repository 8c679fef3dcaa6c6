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

// A slow answer does not have anybody sleep longer: what is known of the clock from quick ones stays, but for what may have drifted.
func TestASlowAnswerDoesNotSetTheClockBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ahead = 3 * time.Hour
		var c clock
		c.ask(ahead, time.Millisecond, 80*time.Millisecond)
		c.ask(ahead, 2*time.Millisecond, time.Millisecond)
		begun := time.Now()
		for range 100 {
			c.ask(ahead, rand.N(time.Second), 100*time.Millisecond+rand.N(time.Second))
			late := time.Until(c.local(time.Now().Add(ahead)))
			if most := time.Millisecond + time.Since(begun)*mostDrift/1e6; late < 0 || late > most {
				t.Fatalf("the database's clock is taken to be %v behind what it is, want %v at most", late, most)
			}
		}
	})
}

// While clocks drift apart, as far as they do, nobody takes the database's to be ahead of what it is: whoever asks too early finds
// nothing.
func TestAClockThatDriftsIsNeverTakenToBeAhead(t *testing.T) {
	for _, drift := range []time.Duration{-mostDrift, -20, 20, mostDrift} { // millionths
		synctest.Test(t, func(t *testing.T) {
			var c clock
			begun := time.Now()
			ahead := func() time.Duration { return time.Minute + time.Since(begun)*drift/1e6 }
			for range 10_000 {
				time.Sleep(time.Second)
				c.ask(ahead(), rand.N(5*time.Millisecond), time.Millisecond+rand.N(5*time.Millisecond))
				if off := c.database(time.Now()).Sub(time.Now().Add(ahead())); off > 0 || off < -10*time.Millisecond {
					t.Fatalf("after %v the database's clock is taken to be off by %v", time.Since(begun), off)
				}
			}
		})
	}
}

// A clock that was set is known as it is from the next answer on.
func TestAClockThatWasSetIsKnownByTheNextAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c clock
		for _, ahead := range []time.Duration{time.Minute, -time.Hour, time.Hour, time.Hour - 10*time.Millisecond, time.Hour + 10*time.Millisecond} {
			c.ask(ahead, time.Millisecond, 2*time.Millisecond)
			if off := c.database(time.Now()).Sub(time.Now().Add(ahead)); off < -2*time.Millisecond || off > 0 {
				t.Errorf("the clock that is %v ahead is taken to be off by %v", ahead, off)
			}
		}
	})
}
