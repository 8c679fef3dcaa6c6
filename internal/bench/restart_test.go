package bench_test

import (
	"math"
	"strings"
	"testing"

	"github.com/taskerhq/tasker/internal/bench"
)

func TestFirstWords(t *testing.T) {
	for query, want := range map[string]string{
		"-- Grants leases: from each wanted lane\n-- and so on\nselect 1": "Grants leases",
		"select  1\n from t":                              "select 1 from t",
		"-- " + strings.Repeat("very long ", 9) + ": cut": "very long very long very long very long very lon…",
		strings.Repeat("ä", 40):                           strings.Repeat("ä", 24) + "…",
	} {
		if got := bench.FirstWords(query); got != want {
			t.Errorf("of %q: %q, want %q", query, got, want)
		}
	}
}

func TestWorstStatement(t *testing.T) {
	const steps = 100 // and twice as many in the second run
	tests := map[string]struct {
		usual, now map[string]float64
		name       string
		was, is    float64
	}{
		"one got slower":            {map[string]float64{"claim": 1000, "submit": 1000}, map[string]float64{"claim": 1800, "submit": 8000}, "submit", 10, 40},
		"the slowest is no worse":   {map[string]float64{"claim": 9000, "submit": 1000}, map[string]float64{"claim": 18_000, "submit": 4000}, "submit", 10, 20},
		"what is rare is noise":     {map[string]float64{"claim": 9000, "tick": 1}, map[string]float64{"claim": 18_000, "tick": 300}, "claim", 90, 90},
		"what is new counts from 1": {map[string]float64{"claim": 9000}, map[string]float64{"claim": 18_000, "new": 1000}, "new", 1, 5},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, was, is, err := bench.WorstStatement(test.usual, steps, test.now, 2*steps)
			if err != nil || got != test.name || math.Abs(was-test.was) > 1e-9 || math.Abs(is-test.is) > 1e-9 {
				t.Errorf("%s, %g, %g, %v; want %s, %g, %g", got, was, is, err, test.name, test.was, test.is)
			}
		})
	}
	if _, _, _, err := bench.WorstStatement(nil, steps, nil, steps); err == nil {
		t.Error("nothing was counted, and there is no error")
	}
}
