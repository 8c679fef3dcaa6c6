package bench

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// scenario is one kind of load.
type scenario struct {
	name  string
	about string
	// estimate is about how long it takes.
	estimate func(*sizes) time.Duration
	run      func(context.Context, *world) error
}

// scenarios in the order in which they run. Those of latency stand first: what the others leave behind keeps the disk and
// the vacuum busy for a while.
var scenarios = []scenario{chainScenario, b2Scenario, b1Scenario}

// Scenarios tells the names of all scenarios and what each is, in the order in which they run.
func Scenarios() [][2]string {
	var all [][2]string
	for _, s := range scenarios {
		all = append(all, [2]string{s.name, s.about})
	}
	return all
}

func choose(names []string) ([]scenario, error) {
	if len(names) == 0 {
		return scenarios, nil
	}
	var known, chosen []string
	for _, s := range scenarios {
		known = append(known, s.name)
	}
	for _, name := range names {
		at := slices.IndexFunc(known, func(k string) bool { return strings.EqualFold(k, name) })
		if at < 0 {
			return nil, fmt.Errorf("there is no scenario %q; there are %s", name, strings.Join(known, ", "))
		}
		chosen = append(chosen, known[at])
	}
	return slices.DeleteFunc(slices.Clone(scenarios), func(s scenario) bool { return !slices.Contains(chosen, s.name) }), nil
}

// sizes is how long everything runs.
type sizes struct {
	rounds         int           // of B1
	warmup, window time.Duration // of one measurement of a rate
	callWindow     time.Duration // of empty calls
	floorWindow    time.Duration // where only the floor's latencies are wanted
	probes         int           // single empty calls that are timed
	chains         int           // of four steps
	chainEvery     time.Duration
	longChains     int // of chainSteps, one after another
	chainSteps     int
	manyChains     int // at once
	manySteps      int // of each
}

var fullSizes = sizes{
	rounds: 3, warmup: time.Second, window: 8 * time.Second, callWindow: 2 * time.Second, floorWindow: 2 * time.Second,
	probes: 2000, chains: 600, chainEvery: 50 * time.Millisecond,
	longChains: 5, chainSteps: 300, manyChains: 100, manySteps: 300,
}

var quickSizes = sizes{
	rounds: 2, warmup: 500 * time.Millisecond, window: 2500 * time.Millisecond, callWindow: time.Second, floorWindow: 500 * time.Millisecond,
	probes: 500, chains: 100, chainEvery: 40 * time.Millisecond,
	longChains: 1, chainSteps: 300, manyChains: 100, manySteps: 30,
}
