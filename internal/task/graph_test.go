package task_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/taskerhq/tasker/internal/task"
)

func step(name string, dependsOn ...string) task.NamedStep {
	return task.NamedStep{Name: name, DependsOn: dependsOn}
}

// chain makes n steps, each depending on the one before.
func chain(n int) []task.NamedStep {
	steps := []task.NamedStep{step("s0")}
	for i := 1; i < n; i++ {
		steps = append(steps, step(fmt.Sprintf("s%d", i), fmt.Sprintf("s%d", i-1)))
	}
	return steps
}

// fan makes n steps without parents and as many joins of them as give edges in all.
func fan(n, edges int) []task.NamedStep {
	var steps []task.NamedStep
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("s%d", i))
		steps = append(steps, step(names[i]))
	}
	for i := 0; edges > 0; i++ {
		width := min(n, edges)
		edges -= width
		steps = append(steps, step(fmt.Sprintf("join%d", i), names[:width]...))
	}
	return steps
}

func TestCheckGraphResolvesNames(t *testing.T) {
	parents, err := task.CheckGraph([]task.NamedStep{
		step("ship", "pay", "pack"), step("pay", "reserve"), step("reserve"), step("pack", "reserve"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]int{{2, 4}, {3}, nil, {3}}, parents); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]int{2, 1, 0, 1}, task.Levels(parents)); diff != "" {
		t.Error(diff)
	}
}

func TestCheckGraphRefuses(t *testing.T) {
	long := strings.Repeat("é", 200)
	tests := map[string]struct {
		steps    []task.NamedStep
		reason   task.Reason
		field    string
		metadata map[string]string
	}{
		"no steps":       {nil, task.Validation, "steps", nil},
		"too many steps": {chain(task.MaxSteps + 1), task.Validation, "steps", nil},
		"too many edges": {fan(5000, task.MaxEdges+1), task.Validation, "steps", nil},
		"too many parents": {
			[]task.NamedStep{step("a", make([]string, task.MaxParents+1)...)},
			task.Validation, "steps[0].depends_on", nil,
		},
		"one name twice": {
			[]task.NamedStep{step("a"), step("b"), step("a")},
			task.DuplicateStep, "steps[2].name",
			map[string]string{"step": "a"},
		},
		"unknown parent": {
			[]task.NamedStep{step("charge"), step("notify", "charge", "chrage")},
			task.UnknownDependency, "steps[1].depends_on[1]",
			map[string]string{"step": "notify", "dependency": "chrage"},
		},
		"a long name is cut between characters": {
			[]task.NamedStep{step("a", long)},
			task.UnknownDependency, "steps[0].depends_on[0]",
			map[string]string{"step": "a", "dependency": strings.Repeat("é", 126) + "…"},
		},
		"parent named twice": {
			[]task.NamedStep{step("a"), step("b", "a", "a")},
			task.Validation, "steps[1].depends_on[1]", nil,
		},
		"itself": {
			[]task.NamedStep{step("a"), step("b", "a", "b")},
			task.DAGCycle, "steps[1].depends_on[1]",
			map[string]string{"path": "b -> b"},
		},
		"two": {
			[]task.NamedStep{step("charge", "notify"), step("notify", "charge")},
			task.DAGCycle, "steps[1].depends_on[0]",
			map[string]string{"path": "charge -> notify -> charge"},
		},
		"a circle behind a tail, before a head": {
			[]task.NamedStep{step("out", "c"), step("root"), step("c", "b"), step("a", "root", "c"), step("b", "a")},
			task.DAGCycle, "steps[3].depends_on[1]",
			map[string]string{"path": "c -> a -> b -> c"},
		},
		"a long circle": {
			append(chain(99)[1:], step("s0", "s98")),
			task.DAGCycle, "steps[1].depends_on[0]",
			map[string]string{"path": "s1 -> s2 -> s3 -> s4 -> s5 -> s6 -> s7 -> s8 -> s9 -> s10 -> (89 more) -> s1"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := task.CheckGraph(tt.steps)
			var refused *task.Error
			if !errors.As(err, &refused) {
				t.Fatalf("got %v, want %s", err, tt.reason)
			}
			if refused.Reason != tt.reason || refused.Field != tt.field {
				t.Errorf("got %s at %s, want %s at %s", refused.Reason, refused.Field, tt.reason, tt.field)
			}
			if diff := cmp.Diff(tt.metadata, refused.Metadata); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCheckGraphTakesTheLimits(t *testing.T) {
	for name, steps := range map[string][]task.NamedStep{
		"steps":   chain(task.MaxSteps),
		"edges":   fan(5000, task.MaxEdges),
		"parents": fan(task.MaxSteps-1, task.MaxSteps-1),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := task.CheckGraph(steps); err != nil {
				t.Error(err)
			}
		})
	}
}

// Whatever the graph, an accepted one has levels that rise along every edge, and a refused one shows a true circle.
func TestCheckGraphIsRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		checkGraph(t, rapid.SliceOfN(rapid.Byte(), 0, 60).Draw(t, "edges"))
	})
}

func FuzzCheckGraph(f *testing.F) {
	f.Add([]byte{0x10, 0x21, 0x02})
	f.Fuzz(func(t *testing.T, edges []byte) { checkGraph(t, edges) })
}

// checkGraph reads each byte as an edge between two of 16 steps.
func checkGraph(t interface {
	Fatalf(format string, args ...any)
}, edges []byte,
) {
	steps := make([]task.NamedStep, 16)
	for i := range steps {
		steps[i].Name = fmt.Sprintf("s%d", i)
	}
	for _, e := range edges {
		child, parent := int(e>>4), fmt.Sprintf("s%d", e&15)
		if !slices.Contains(steps[child].DependsOn, parent) {
			steps[child].DependsOn = append(steps[child].DependsOn, parent)
		}
	}
	parents, err := task.CheckGraph(steps)
	if err == nil {
		levels := task.Levels(parents)
		for i, of := range parents {
			if len(of) != len(steps[i].DependsOn) || !slices.IsSorted(of) {
				t.Fatalf("step %d has parents %v of %v", i, of, steps[i].DependsOn)
			}
			for _, no := range of {
				if levels[no-1] >= levels[i] {
					t.Fatalf("step %d stands at level %d, its parent %d at %d", i, levels[i], no-1, levels[no-1])
				}
			}
		}
		return
	}
	var refused *task.Error
	if !errors.As(err, &refused) || refused.Reason != task.DAGCycle {
		t.Fatalf("refused for another reason: %v", err)
	}
	path := strings.Split(refused.Metadata["path"], " -> ")
	if len(path) < 2 || path[0] != path[len(path)-1] {
		t.Fatalf("%v is no circle", path)
	}
	for i := 1; i < len(path); i++ {
		if strings.HasPrefix(path[i], "(") || strings.HasPrefix(path[i-1], "(") {
			continue // cut in the middle
		}
		var no int
		if _, err := fmt.Sscanf(path[i], "s%d", &no); err != nil || !slices.Contains(steps[no].DependsOn, path[i-1]) {
			t.Fatalf("%s does not depend on %s", path[i], path[i-1])
		}
	}
}
