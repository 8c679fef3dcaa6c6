package task

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// NamedStep is a step as a definition names it: the graph before it has numbers.
type NamedStep struct {
	Name      string
	DependsOn []string
}

// CheckGraph checks the graph of a definition and resolves its names. Step n of a task is steps[n-1]; parents[n-1] are the
// numbers of its parents, ascending, nil where it has none.
//
// Refused, each as an *Error whose Field is relative to the definition (steps[3].depends_on[0]): no steps, and more steps,
// edges or parents than the limits (VALIDATION); two steps of one name (DUPLICATE_STEP); a parent that is no step
// (UNKNOWN_DEPENDENCY) or is named twice (VALIDATION); a circle, of one step or more (DAG_CYCLE). The work is linear in
// steps and edges, save for sorting each step's parents.
func CheckGraph(steps []NamedStep) (parents [][]int, err error) {
	if err := checkGraphSize(steps); err != nil {
		return nil, err
	}
	number := make(map[string]int, len(steps))
	for i, s := range steps {
		if first, ok := number[s.Name]; ok {
			return nil, Refuse(DuplicateStep, "steps[%d] bears this name too: %q", first-1, cut(s.Name)).
				At(fmt.Sprintf("steps[%d].name", i)).With("step", cut(s.Name))
		}
		number[s.Name] = i + 1
	}
	parents = make([][]int, len(steps))
	childOf := make([]int, len(steps)+1) // by parent: the last step that named it
	for i, s := range steps {
		for j, name := range s.DependsOn {
			field := fmt.Sprintf("steps[%d].depends_on[%d]", i, j)
			parent, ok := number[name]
			switch {
			case !ok:
				return nil, Refuse(UnknownDependency, "%q depends on %q, and there is no such step", cut(s.Name), cut(name)).
					At(field).With("step", cut(s.Name)).With("dependency", cut(name))
			case parent == i+1:
				return nil, refusePath([]string{s.Name, s.Name}).At(field)
			case childOf[parent] == i+1:
				return nil, Invalid(field, "%q is named twice", cut(name))
			}
			childOf[parent] = i + 1
			parents[i] = append(parents[i], parent)
		}
		slices.Sort(parents[i])
	}
	if _, stuck := peel(parents); stuck != nil {
		return nil, refuseCircle(steps, parents, stuck)
	}
	return parents, nil
}

func checkGraphSize(steps []NamedStep) error {
	switch {
	case len(steps) == 0:
		return Invalid("steps", "must name at least one step")
	case len(steps) > MaxSteps:
		return Invalid("steps", "%d steps, at most %d are allowed", len(steps), MaxSteps)
	}
	edges := 0
	for i, s := range steps {
		if len(s.DependsOn) > MaxParents {
			return Invalid(fmt.Sprintf("steps[%d].depends_on", i), "%d parents, at most %d are allowed", len(s.DependsOn), MaxParents)
		}
		edges += len(s.DependsOn)
	}
	if edges > MaxEdges {
		return Invalid("steps", "%d dependencies in all, at most %d are allowed", edges, MaxEdges)
	}
	return nil
}

// Levels gives each step's dependency level: 0 without parents, else one more than the highest of its parents. parents is
// as CheckGraph returns it.
func Levels(parents [][]int) []int {
	levels, _ := peel(parents)
	return levels
}

// peel takes the steps off the graph in an order in which they could run. Steps on a circle, or behind one, are never
// taken: stuck tells which. It is nil where there is no circle.
func peel(parents [][]int) (levels []int, stuck []bool) {
	children, missing := make([][]int, len(parents)), make([]int, len(parents))
	runnable := make([]int, 0, len(parents))
	for i, of := range parents {
		missing[i] = len(of)
		if len(of) == 0 {
			runnable = append(runnable, i)
		}
		for _, no := range of {
			children[no-1] = append(children[no-1], i)
		}
	}
	levels = make([]int, len(parents))
	for next := 0; next < len(runnable); next++ {
		step := runnable[next]
		for _, child := range children[step] {
			levels[child] = max(levels[child], levels[step]+1)
			if missing[child]--; missing[child] == 0 {
				runnable = append(runnable, child)
			}
		}
	}
	if len(runnable) == len(parents) {
		return levels, nil
	}
	stuck = make([]bool, len(parents))
	for i := range stuck {
		stuck[i] = missing[i] > 0
	}
	return levels, stuck
}

// refuseCircle names one circle of a graph that has one. Every stuck step has a stuck parent, so going from parent to
// stuck parent must come round.
func refuseCircle(steps []NamedStep, parents [][]int, stuck []bool) *Error {
	seenAt := make([]int, len(parents)) // 1 + place in walk
	var walk []int
	at := slices.Index(stuck, true)
	for seenAt[at] == 0 {
		walk = append(walk, at)
		seenAt[at] = len(walk)
		at = parents[at][slices.IndexFunc(parents[at], func(no int) bool { return stuck[no-1] })] - 1
	}
	circle := slices.Clone(walk[seenAt[at]-1:])
	slices.Reverse(circle) // from parent to child, as they would have to run
	// Begin with the first of them in the definition, whichever way the walk came in.
	first := slices.Index(circle, slices.Min(circle))
	circle = slices.Concat(circle[first:], circle[:first])
	names := make([]string, 0, len(circle)+1)
	for _, i := range circle {
		names = append(names, steps[i].Name)
	}
	child := circle[1%len(circle)]
	return refusePath(append(names, names[0])).
		At(fmt.Sprintf("steps[%d].depends_on[%d]", child, slices.Index(steps[child].DependsOn, names[0])))
}

// maxPath bounds a path in an error: a status travels in a header, which has a limit of its own.
const maxPath = 10

// refusePath makes a DAG_CYCLE of a circle's names, its first one repeated at the end.
func refusePath(names []string) *Error {
	shown := make([]string, 0, maxPath+2)
	for i, name := range names {
		if i >= maxPath && i < len(names)-1 {
			continue
		}
		if i == len(names)-1 && i > maxPath {
			shown = append(shown, fmt.Sprintf("(%d more)", i-maxPath))
		}
		shown = append(shown, cut(name))
	}
	path := strings.Join(shown, " -> ")
	return Refuse(DAGCycle, "the steps depend on each other in a circle: %s", path).With("path", path)
}

// maxNameShown is how many bytes of a name an error repeats. Names within their own limit are shown whole.
const maxNameShown = 255

// cut shortens what a caller sent to what an error may repeat, between two characters.
func cut(name string) string {
	if len(name) <= maxNameShown {
		return name
	}
	end := maxNameShown - len("…")
	for end > 0 && !utf8.RuneStart(name[end]) {
		end--
	}
	return name[:end] + "…"
}
