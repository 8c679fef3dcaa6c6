//go:build linux

package chaos_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// What a step's handler does, as its handler_config says.
const (
	doSucceed  = "succeed"
	doFail     = "fail"      // retryably, Times times, and then succeed
	doHint     = "hint"      // the same, asking for a delay
	doSkip     = "skip"      // fail the first dispatch without counting it
	doHandBack = "hand_back" // release the first dispatch
	doHang     = "hang"      // on the first attempt, until revoked; and then report, too late
	doRefuse   = "refuse"    // fail for good
	doRefuseBy = "refuse_by" // fail retryably with a code that the step calls final
	doExhaust  = "exhaust"   // fail retryably, always
)

const (
	finalCode  = "NO_SUCH_CUSTOMER"
	runTimeout = 0.7 // seconds, of a run that hangs
	stepLease  = 5 * time.Second
	plentiful  = 100 // lost leases that a step may survive, where its end is to be foretold
)

// plan is the handler_config of a step: what is to happen to it. It says all that the worker needs to know.
type plan struct {
	Do      string  `json:"do"`
	Times   int32   `json:"times,omitempty"`
	WorkMS  int     `json:"work_ms"`
	Timeout float64 `json:"timeout,omitempty"`
}

// dooms tells whether a step of this plan fails for good, however often it is run.
func (p plan) dooms() bool { return p.Do == doRefuse || p.Do == doRefuseBy || p.Do == doExhaust }

// graph is a task that a client submits, and what will become of it.
type graph struct {
	namespace, key string
	submission     *taskerv1.TaskSubmission
	doomed         map[string]bool // steps that will not be complete: they fail for good, or a parent does
	toBeCancelled  bool
}

// handlers are the kinds of work. Priorities are drawn too, so there are four times as many lanes in each namespace.
var handlers = []string{"fetch", "compute", "store"}

// drawGraph makes a task of at most room steps.
func drawGraph(draw *rand.Rand, namespace, key string, room int) *graph {
	var parents [][]int
	switch shape := draw.IntN(100); {
	case shape < 12 && room >= 66:
		parents = fanIn(64)
	case shape < 40 && room >= 6:
		parents = diamond(2+draw.IntN(3), 1+draw.IntN(2), room)
	case shape < 65:
		parents = tangle(draw, min(room, 4+draw.IntN(11)))
	default:
		parents = chain(min(room, 3+draw.IntN(6)))
	}
	g := &graph{
		namespace: namespace, key: key, doomed: map[string]bool{},
		submission: &taskerv1.TaskSubmission{
			Name: proto.String("chaos"), IdempotencyKey: proto.String(key), Context: fmt.Sprintf(`{"key": %q}`, key),
			Labels: map[string]string{"test": "chaos"}, Priority: proto.Int32(draw.Int32N(4)),
		},
	}
	doomedStep := -1
	if draw.IntN(10) == 0 {
		doomedStep = draw.IntN(len(parents))
	}
	var steps []*taskerv1.StepDefinition
	for no, of := range parents {
		p := drawPlan(draw, no == doomedStep)
		step := defineStep(draw, stepName(no), p)
		g.doomed[step.GetName()] = p.dooms()
		for _, parent := range of {
			step.DependsOn = append(step.DependsOn, stepName(parent))
			g.doomed[step.GetName()] = g.doomed[step.GetName()] || g.doomed[stepName(parent)]
		}
		steps = append(steps, step)
	}
	g.submission.Definition = &taskerv1.TaskSubmission_Inline{Inline: &taskerv1.InlineSteps{Steps: steps}}
	return g
}

func (g *graph) size() int { return len(g.submission.GetInline().GetSteps()) }

func stepName(no int) string { return fmt.Sprintf("step-%02d", no) }

// chain gives each step the one before it as its parent. Graphs are the parents of each step, which come before it.
func chain(length int) [][]int {
	parents := make([][]int, length)
	for no := 1; no < length; no++ {
		parents[no] = []int{no - 1}
	}
	return parents
}

// diamond has layers of some width, joined and spread again by a single step between them.
func diamond(width, layers, room int) [][]int {
	parents := [][]int{nil}
	for range layers {
		if len(parents)+width+1 > room {
			break
		}
		top := len(parents) - 1
		var join []int
		for range width {
			join = append(join, len(parents))
			parents = append(parents, []int{top})
		}
		parents = append(parents, join)
	}
	return parents
}

// fanIn has a step that waits for many at once, and one behind it.
func fanIn(width int) [][]int {
	parents := make([][]int, width)
	var join []int
	for no := range width {
		join = append(join, no)
	}
	return append(parents, join, []int{width})
}

// tangle gives each step parents at random, mostly the one just before, so that it is deep as well as wide.
func tangle(draw *rand.Rand, length int) [][]int {
	parents := make([][]int, length)
	for no := range length {
		for parent := range no {
			if draw.IntN(no+1) < 2 || parent == no-1 && draw.IntN(3) > 0 {
				parents[no] = append(parents[no], parent)
			}
		}
	}
	return parents
}

func drawPlan(draw *rand.Rand, doomed bool) plan {
	if doomed {
		return plan{Do: []string{doRefuse, doRefuseBy, doExhaust}[draw.IntN(3)]}
	}
	p := plan{Do: doSucceed, WorkMS: draw.IntN(8)}
	switch fate := draw.IntN(1000); {
	case fate < 60:
		p.Do, p.Times = doFail, 1+draw.Int32N(3)
	case fate < 120:
		p.Do, p.Times = doHint, 1+draw.Int32N(3)
	case fate < 135:
		p.Do = doSkip
	case fate < 150:
		p.Do = doHandBack
	case fate < 156:
		p.Do, p.Timeout = doHang, runTimeout
	case fate < 190:
		p.WorkMS = 900 + draw.IntN(1500) // long enough to be confirmed, and in somebody's hands when they are killed
	}
	return p
}

func defineStep(draw *rand.Rand, name string, p plan) *taskerv1.StepDefinition {
	config, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and numbers
	}
	step := &taskerv1.StepDefinition{
		Name: name, Handler: proto.String(handlers[draw.IntN(len(handlers))]), HandlerConfig: string(config),
		Lease: durationpb.New(stepLease), MaxLostLeases: proto.Int32(plentiful),
		// A run that hangs may time out again before it is known to be another attempt, and work that is cut off is not counted.
		RetryLimit: proto.Int32(p.Times + 4),
		Backoff: &taskerv1.BackoffPolicy{
			Initial: durationpb.New(time.Duration(5+draw.IntN(20)) * time.Millisecond), Max: durationpb.New(100 * time.Millisecond),
		},
	}
	switch {
	case p.Do == doRefuseBy:
		step.NonRetryableCodes = []string{finalCode}
	case p.Do == doExhaust:
		step.RetryLimit = proto.Int32(2)
	case draw.IntN(20) == 0:
		step.MaxLostLeases = nil // 3: with bad luck it is given up
	}
	return step
}

// fault says how a task's end differs from what its plans foretell; empty when it does not.
func (g *graph) fault(state string, complete []string) string {
	wantState, want := "complete", []string{}
	for name, doomed := range g.doomed {
		if doomed {
			wantState = "error"
		} else {
			want = append(want, name)
		}
	}
	slices.Sort(want)
	slices.Sort(complete)
	if state != wantState {
		return fmt.Sprintf("foretold to be %s, it is %s", wantState, state)
	}
	if !slices.Equal(want, complete) {
		return fmt.Sprintf("foretold to complete %v, it completed %v", want, complete)
	}
	return ""
}
