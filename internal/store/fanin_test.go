package store_test

import (
	"flag"
	"testing"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

var fanInRounds = flag.Int("fanin.rounds", 200, "rounds of 64 parents that finish at once")

// fanIn is a graph of n parents, two joins of all of them, and a leaf below both.
func fanIn(n int) []task.StepSpec {
	var parents []int
	steps := make([]task.StepSpec, 0, n+3)
	for no := range n {
		steps = append(steps, step())
		parents = append(parents, no+1)
	}
	return append(steps, step(parents...), step(parents...), step(n+1, n+2))
}

// TestFanInWakesTheJoinOnceHoweverItsParentsFinish lets the parents of joins finish at once, in transactions that see
// nothing of each other (S2): no join is forgotten, none woken twice, and no two transactions wait for each other.
func TestFanInWakesTheJoinOnceHoweverItsParentsFinish(t *testing.T) {
	for _, x := range []struct {
		name                   string
		parents, rounds, batch int
	}{
		{"64 parents", 64, *fanInRounds, 8},
		{"64 parents one by one", 64, max(*fanInRounds/10, 1), 1},
		{"striped 300 parents", 300, max(*fanInRounds/20, 1), 20},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := newCrowd(t, 2, 8)
			for range x.rounds {
				id := c.submit(fanIn(x.parents))[0]
				tokens := shuffled(c.claim(c.servers[0], x.parents+1))
				if len(tokens) != x.parents {
					t.Fatalf("%d parents were granted", len(tokens))
				}
				var finish []func()
				for n := 0; len(tokens) > 0; n++ {
					some := tokens[:min(x.batch, len(tokens))]
					tokens = tokens[len(some):]
					finish = append(finish, func() { c.finish(c.servers[n%2], some) })
				}
				together(finish...)
				joins := c.claim(c.servers[0], 5)
				if len(joins) != 2 {
					t.Fatalf("lost wake-up: %d of 2 joins are ready", len(joins))
				}
				together(func() { c.finish(c.servers[0], joins[:1]) }, func() { c.finish(c.servers[1], joins[1:]) })
				leaf := c.claim(c.servers[0], 5)
				if len(leaf) != 1 {
					t.Fatalf("lost wake-up: %d of 1 leaf is ready", len(leaf))
				}
				c.finish(c.servers[0], leaf)
				if n := c.count("select count(*) from task_end where task_id = $1 and state = 'complete'", id); n != 1 {
					t.Fatalf("the task has %d ends", n)
				}
			}
			c.sound()
			c.record()
			c.noDeadlocks()
			t.Logf("reached fanin_rounds=%d", x.rounds)
		})
	}
}

// finish reports success of several steps in one transaction.
func (c *crowd) finish(s *store.Store, tokens []task.Token) {
	reports := make([]task.Report, len(tokens))
	for i, token := range tokens {
		reports[i] = outcomeOf(token, task.Success)
	}
	f, err := s.Turn(c.Context(), c.ns, nil, reports, nil)
	if err != nil {
		c.Error(err)
		return
	}
	for i, a := range f.Answers {
		if a.Reported == nil {
			c.Errorf("the success of step %s was answered %+v", tokens[i].Step, a)
		}
	}
}
