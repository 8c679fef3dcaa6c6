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

// scenarios in the order in which they run. Those of latency stand first: what the others leave behind keeps the disk
// busy for a while. B11 is the last, because it restarts Postgres with other settings.
var scenarios = []scenario{
	chainScenario, b2Scenario, b1Scenario, b3Scenario, b4Scenario, b8Scenario, b9Scenario, b7Scenario, b6Scenario, b10Scenario,
	b5Scenario, b11Scenario,
}

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
