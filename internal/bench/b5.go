package bench

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// b5Scenario is claims from queues of very different length.
//
// What is timed is the claim that the server makes, made here: through the server, it could not be told from what surrounds
// it. Two databases are measured claim by claim in turns, of which one keeps the smallest backlog throughout: what the machine
// does meanwhile meets both. What filling leaves to be done in the background is done before.
var b5Scenario = scenario{
	name:  "B5",
	about: "claims of a hundred steps from backlogs of very different size: ready, blocked, backing off, and behind an open circuit",
	estimate: func(s *sizes) time.Duration {
		rows := 3*s.backlogs[len(s.backlogs)-1] + s.aside
		claims := time.Duration(s.claimTurns*s.claims*(len(s.backlogs)+3)*2) * 6 * time.Millisecond
		return stageEstimate + time.Duration(rows)*fillTime + claims
	},
	run: runB5,
}

const (
	// flatBar is how many times longer a claim may take with the largest backlog than with the smallest.
	flatBar    = 1.5
	claimSteps = 100

	claimHandler = "bench-claimed"
	asideHandler = "bench-aside"
	// waitsFor is how far off steps are due that back off for the whole run.
	waitsFor = 24 * time.Hour
	// blockedWidth is how many steps of a task wait for one that nobody runs.
	blockedWidth = 9998
)

func runB5(ctx context.Context, w *world) (err error) {
	w.phase(stageEstimate, "B5: a second database")
	small, err := w.openStage(ctx, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, small.closeStage(context.WithoutCancel(ctx))) }()
	sides := [2]*claimant{}
	for i, on := range []*world{small, w} {
		if sides[i], err = on.openClaimant(ctx); err != nil {
			return err
		}
		defer sides[i].store.Close()
		if err := sides[i].ready.add(ctx, w.backlogs[0]); err != nil {
			return err
		}
	}
	few, many := sides[0], sides[1]
	largest := w.backlogs[len(w.backlogs)-1]
	type load struct {
		key  string
		size int64
		add  func() error
	}
	aside := func(name string, n int64, task *pb.TaskSubmission) func() error {
		return func() error {
			f, err := w.openFiller(ctx, "", task)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			defer func() { f.leave(0) }()
			return f.add(ctx, max(1, n/f.steps))
		}
	}
	waiting := oneStep("waiting", claimHandler)
	waiting.NotBefore = timestamppb.New(time.Now().Add(waitsFor))
	loads := []load{
		// Equal on both sides: how far two equal ones are apart is how far the others' ratios can be trusted.
		{"equal", w.backlogs[0], func() error { return nil }},
		{"backing_off", largest, aside("backing off", largest, waiting)},
		{"blocked", largest, aside("blocked", largest, blocked())},
		// Each claim names a lane behind an open circuit, too, as a server's does that has not heard of it. On the one side a few
		// steps stand behind it.
		{"open_circuit", w.aside, func() error {
			for i, side := range sides {
				if err := side.openGate(ctx, []int64{1, w.aside}[i]); err != nil {
					return err
				}
			}
			recordTrips(w.doc, many.gate)
			return nil
		}},
	}
	have := w.backlogs[0]
	for _, size := range w.backlogs[1:] {
		more := size - have
		have = size
		loads = append(loads, load{"ready_" + strconv.FormatInt(size, 10), size, func() error { return many.ready.add(ctx, more) }})
	}
	for _, l := range loads {
		w.phase(time.Duration(l.size)*fillTime, "B5: filling %d, %s", l.size, l.key)
		if err := l.add(); err != nil {
			return err
		}
		for _, side := range sides {
			if err := side.on.settle(ctx); err != nil {
				return err
			}
		}
		if err := turn(ctx, sides, 0, 1); err != nil { // warms up
			return err
		}
		for _, side := range sides {
			side.first, side.times = newLatencies(), newLatencies()
		}
		w.phase(time.Duration(2*w.claimTurns*w.claims)*6*time.Millisecond, "B5: claims beside %d, %s", l.size, l.key)
		for i := range w.claimTurns {
			if err := turn(ctx, sides, i, w.claims); err != nil {
				return err
			}
		}
		key := "B5." + l.key
		many.times.recordIn(w.doc, key)
		w.doc.Set(key+".rows", float64(l.size))
		many.first.recordIn(w.doc, key+".first")
		few.first.recordIn(w.doc, key+".floor.first")
		few.times.recordIn(w.doc, key+".floor")
		r := row{name: key, unit: "ms p99 claim(100)", ours: many.times.ms(99), floor: few.times.ms(99), beside: fmt.Sprintf("backlog of %d", w.backlogs[0])}
		if l.key == "open_circuit" {
			r.beside = fmt.Sprintf("%d behind it", gateFew)
			for _, side := range sides {
				side.closeGate()
			}
		}
		r.ratio = r.ours / r.floor
		if l.key != "equal" {
			r.bar, r.met = fmt.Sprintf("≤ %g", flatBar), r.ratio <= flatBar
		}
		w.doc.judge(r)
	}
	for _, side := range sides {
		side.ready.leave(side.on.ended.Load())
	}
	if err := small.stopServers(); err != nil {
		return err
	}
	return small.verify(ctx)
}

// settle does at once what filling leaves to be done in the background.
func (w *world) settle(ctx context.Context) error {
	for _, sql := range []string{"vacuum analyze", "checkpoint"} {
		if _, err := w.conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// oneStep is a task of one step.
func oneStep(name, handler string) *pb.TaskSubmission {
	return &pb.TaskSubmission{
		Name: proto.String("bench-" + name), Context: taskContext,
		Definition: &pb.TaskSubmission_Inline{Inline: &pb.InlineSteps{Steps: []*pb.StepDefinition{{Name: "only", Handler: &handler}}}},
	}
}

// blocked is a task of a step that nobody runs, and very many, of the handler that is claimed from, that wait for it.
func blocked() *pb.TaskSubmission {
	fan := fanTemplate("blocked", claimHandler, blockedWidth)
	fan.Steps[0].Handler = proto.String(asideHandler)
	return &pb.TaskSubmission{
		Name: proto.String("bench-blocked"), Context: taskContext,
		Definition: &pb.TaskSubmission_Inline{Inline: &pb.InlineSteps{Steps: fan.GetSteps()}},
	}
}

// claimant claims from one lane of a stage as its server would.
type claimant struct {
	on        *world
	store     *store.Store
	ready     *filler
	namespace int32
	lane      int32
	fence     store.SessionFence
	cursor    int64
	times     *latencies // of all claims
	first     *latencies // of those that looked from the beginning
	gate      *openGate  // nil: the claims name no lane behind a circuit
}

func (w *world) openClaimant(ctx context.Context) (*claimant, error) {
	config, err := pgxpool.ParseConfig(w.url)
	if err != nil {
		return nil, errors.New("the database URL cannot be read")
	}
	config.MaxConns = 2
	c := &claimant{on: w, times: newLatencies(), first: newLatencies()}
	if c.ready, err = w.openFiller(ctx, "", oneStep("claimed", claimHandler)); err != nil {
		return nil, err
	}
	err = w.conn.QueryRow(ctx, "select namespace_id, lane_id from ready join lane using (lane_id) where task_id = $1", c.ready.sample).Scan(&c.namespace, &c.lane)
	if err != nil {
		return nil, fmt.Errorf("finding the lane: %w", err)
	}
	if c.store, err = store.Open(ctx, config, config.MaxConns); err != nil {
		return nil, err
	}
	session, epoch, _, err := c.store.OpenSession(ctx, c.namespace, uuid.New(), store.Session{
		WorkerID: "bench-claimant", InstanceID: uuid.NewString(), MaxInFlight: claimSteps, Handlers: []string{claimHandler},
	})
	if err != nil {
		c.store.Close()
		return nil, fmt.Errorf("opening a session: %w", err)
	}
	c.fence = store.SessionFence{SessionID: session, Epoch: epoch, DeliveryTimeout: deliveryTimeout}
	return c, nil
}

// turn times so many claims of either side, who takes turns at going first. What they take is reported, untimed, and put back at
// the lane's end. Each side's first one looks from the lane's beginning, as a server does now and then; the others go on where
// the last one ended.
func turn(ctx context.Context, sides [2]*claimant, number, claims int) error {
	for i := range claims {
		for k := range sides {
			if err := sides[(number+i+k)%2].claim(ctx, i == 0); err != nil {
				return err
			}
		}
	}
	for _, side := range sides {
		if err := side.ready.add(ctx, int64(claims*claimSteps)); err != nil {
			return err
		}
	}
	return nil
}

func (c *claimant) claim(ctx context.Context, first bool) error {
	if first {
		c.cursor = 0
	}
	want := store.LaneWant{LaneID: c.lane, After: c.cursor, Slots: make([]int32, claimSteps)}
	for i := range want.Slots {
		want.Slots[i] = c.fence.SessionID
	}
	claim := &store.Claim{Lanes: []store.LaneWant{want}, Sessions: []store.SessionFence{c.fence}}
	if c.gate != nil {
		c.gate.join(claim, false, c.fence.SessionID)
	}
	begun := time.Now()
	grants, _, err := c.store.Claim(ctx, c.namespace, claim)
	took := time.Since(begun)
	c.times.record(took)
	if first {
		c.first.record(took)
	}
	if err != nil {
		return fmt.Errorf("claiming: %w", err)
	}
	if len(grants) != claimSteps {
		return fmt.Errorf("a claim of %d steps was granted %d", claimSteps, len(grants))
	}
	reports := make([]task.Report, len(grants))
	for i, g := range grants {
		if g.Seq != nil {
			c.cursor = max(c.cursor, *g.Seq)
		}
		reports[i] = task.Report{Token: g.Step.Token, Outcome: task.Success, Results: stepResults, Digest: sha256.Sum256([]byte(stepResults))}
	}
	done, err := c.store.Turn(ctx, c.namespace, nil, reports, nil)
	if err != nil {
		return fmt.Errorf("reporting: %w", err)
	}
	for _, answer := range done.Answers {
		if answer.Reported == nil {
			return errors.New("a report of a step that was just claimed was refused")
		}
	}
	c.on.ended.Add(int64(len(reports)))
	return nil
}
