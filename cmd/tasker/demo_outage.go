package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/taskerhq/tasker/examples/registration"
	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

const (
	// outageLasts is how long the service is down.
	outageLasts = 20 * time.Second
	// outageSlots is how many steps each worker of the outage takes at once.
	outageSlots = 8

	withCircuit = "with-circuit"
	noCircuit   = "no-circuit"
)

// outagePolicy is that of the circuit: it judges soon, and looks often whether the service is back, as suits a short outage.
var outagePolicy = &taskerv1.CircuitPolicy{
	WindowDuration: durationpb.New(2 * time.Second), MinObservations: proto.Int32(20), FailureRateThreshold: proto.Float64(0.2),
	OpenDuration: durationpb.New(2 * time.Second), MaxOpenDuration: durationpb.New(4 * time.Second), MaxProbes: proto.Int32(1),
	CloseAfterSuccesses: proto.Int32(3), RecoveryWave: proto.Int32(10),
}

// outageSide is one of the two that meet the same outage under the same load: a namespace with services, workers and a client of
// its own.
type outageSide struct {
	namespace string
	services  *registration.Services
	client    *demoClient
}

func (s *outageSide) close() error {
	var err error
	if s.client != nil {
		err = s.client.close()
	}
	return errors.Join(err, s.services.Close())
}

// vain is how many calls met the service while it was down.
func (s *outageSide) vain() (calls int) {
	for _, call := range s.services.Calls() {
		if call.Answer.Status == 503 {
			calls++
		}
	}
	return calls
}

// outage takes a service down under two equal loads, of which one is behind a circuit, and judges.
func (d *demo) outage(ctx context.Context) (holds bool, err error) {
	d.say("%s goes down under %d tasks, twice at once: in namespace %s their steps share a circuit, in %s they do not",
		registration.UserService, d.imports, withCircuit, noCircuit)
	for _, namespace := range []string{noCircuit, withCircuit} {
		if err := d.openSide(ctx, namespace); err != nil {
			return false, err
		}
	}
	board := &outageBoard{demo: d, live: &live{printer: d.printer}, saw: time.Now()}
	d.board = board
	defer func() { board.close(context.WithoutCancel(ctx)) }()
	if err := board.await(ctx, "every worker has a stream open", func(p outageProgress) bool { return p.workers == 2*len(d.sides) }); err != nil {
		return false, err
	}
	first := d.imports / 5
	if err := d.eachSide(ctx, func(ctx context.Context, s *outageSide) error { return s.client.submit(ctx, 1, first) }); err != nil {
		return false, err
	}
	err = board.await(ctx, "tasks are done", func(p outageProgress) bool {
		return !slices.ContainsFunc(p.sides, func(s sideProgress) bool { return s.done < first/2 })
	})
	if err != nil {
		return false, err
	}
	for _, side := range d.sides {
		side.services.SetDown(true)
	}
	down := time.Now()
	d.say("%s is down, and %d tasks more are submitted", registration.UserService, d.imports-first)
	err = d.eachSide(ctx, func(ctx context.Context, s *outageSide) error { return s.client.submit(ctx, first+1, d.imports) })
	if err != nil {
		return false, err
	}
	past := func(share float64) func(outageProgress) bool {
		return func(outageProgress) bool { return time.Since(down) >= time.Duration(share*float64(outageLasts)) }
	}
	if err := board.await(ctx, "half of the outage is over", past(0.5)); err != nil {
		return false, err
	}
	if err := d.askHealth(ctx); err != nil {
		return false, err
	}
	if err := board.await(ctx, "the outage is over", past(1)); err != nil {
		return false, err
	}
	for _, side := range d.sides {
		side.services.SetDown(false)
	}
	back := time.Now()
	d.say("%s is back", registration.UserService)
	err = board.await(ctx, "every task is complete", func(p outageProgress) bool {
		return !slices.ContainsFunc(p.sides, func(s sideProgress) bool { return s.done < d.imports })
	})
	if err != nil {
		return false, err
	}
	board.close(ctx)
	if err := d.stopWorkers(ctx); err != nil {
		return false, err
	}
	return d.judgeOutage(ctx, back)
}

// openSide starts what one side needs.
func (d *demo) openSide(ctx context.Context, namespace string) (err error) {
	side := &outageSide{namespace: namespace}
	if side.services, err = registration.StartSteady(ctx); err != nil {
		return err
	}
	d.sides = append(d.sides, side)
	if side.client, err = d.newClient(namespace, registration.ImportName); err != nil {
		return err
	}
	err = side.client.register(ctx, registration.ImportYAML, func(t *taskerv1.Template) {
		if namespace == noCircuit || d.mutant == "no_circuit" {
			t.Steps[0].Circuit = nil
		}
	})
	if err != nil {
		return err
	}
	if namespace == withCircuit {
		_, err := side.client.circuits.SetCircuitPolicy(ctx, &taskerv1.SetCircuitPolicyRequest{
			Namespace: namespace, Circuit: registration.UserService, Policy: outagePolicy,
		})
		if err != nil {
			return fmt.Errorf("setting the circuit's policy: %w", err)
		}
	}
	for _, language := range []string{"go", "python"} {
		plan := workerPlan{name: language + "-" + namespace, python: language == "python", steps: []string{registration.CreateUserAccount}, side: side}
		if _, err := d.startWorker(plan); err != nil {
			return err
		}
	}
	return nil
}

// eachSide does something on both sides at the same time.
func (d *demo) eachSide(ctx context.Context, do func(context.Context, *outageSide) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, side := range d.sides {
		group.Go(func() error { return do(ctx, side) })
	}
	return group.Wait()
}

// healthQuery is what an operator asks in an outage.
const healthQuery = `SELECT namespace, circuit, state, cause, open_until, observed, failed, in_flight, waiting_steps
FROM circuit_health
WHERE state <> 'closed'`

func (d *demo) askHealth(ctx context.Context) error {
	conn, err := d.connectDemo(ctx, "tasker_reader")
	if err != nil {
		return fmt.Errorf("connecting to the database: %w", err)
	}
	defer conn.Close(ctx)
	d.say("what an operator asks now:")
	fmt.Fprintf(d.cli.stdout, "\n%s\n", d.printer.paint(styleDim, healthQuery))
	rows, err := conn.Query(ctx, healthQuery)
	if err != nil {
		return err
	}
	if _, err := d.showRows(rows); err != nil {
		return err
	}
	_, err = fmt.Fprintln(d.cli.stdout)
	return err
}

// outageBoard shows how both sides stand.
type outageBoard struct {
	*demo
	live  *live
	conn  *pgx.Conn
	saw   time.Time // the last answer
	lined time.Time
}

// outageProgress is how things stood at one instant.
type outageProgress struct {
	workers int
	sides   []sideProgress
}

// sideProgress is one side: how many tasks were submitted and are done, how many attempts have failed, how many calls met a dead
// service, and where the circuit stands.
type sideProgress struct {
	namespace                 string
	tasks, done, failed, vain int
	state                     string
	openUntil                 *time.Time
	wave, waiting, inFlight   int
}

func (b *outageBoard) hide() {
	if b.live.drawn > 0 {
		_ = b.live.draw(nil) // The terminal is gone; there is nobody to tell.
		b.live.drawn = 0
	}
}

func (b *outageBoard) close(ctx context.Context) {
	if b.conn != nil {
		_ = b.conn.Close(ctx)
		b.conn = nil
	}
	b.board = nil
}

// await looks until something holds of the progress. It fails when a process ended that was not to.
func (b *outageBoard) await(ctx context.Context, what string, holds func(outageProgress) bool) error {
	for {
		progress, err := b.look(ctx)
		switch {
		case err == nil:
			b.saw = time.Now()
			if err := b.show(progress); err != nil {
				return err
			}
			if holds(progress) {
				return nil
			}
		case time.Since(b.saw) > boardBlind:
			return fmt.Errorf("waiting until %s: the database does not answer: %w", what, err)
		}
		errs := []error{b.server.gone()}
		for _, worker := range b.workers {
			errs = append(errs, worker.gone())
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		select {
		case <-time.After(boardLook):
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, context.Cause(ctx))
		}
	}
}

func (b *outageBoard) look(ctx context.Context) (p outageProgress, err error) {
	if b.conn == nil {
		if b.conn, err = b.connectDemo(ctx, "tasker_reader"); err != nil {
			return p, err
		}
	}
	if err := b.conn.QueryRow(ctx, "select connected_workers from system_health_counts").Scan(&p.workers); err != nil {
		return p, err
	}
	for _, side := range b.sides {
		s := sideProgress{namespace: side.namespace, state: "no circuit", vain: side.vain(), tasks: len(side.client.users())}
		err := b.conn.QueryRow(ctx, `
			select count(*) filter (where outcome = 'success'), count(*) filter (where outcome = 'retryable_failure')
			from step_attempts_v where namespace = $1`, side.namespace).Scan(&s.done, &s.failed)
		if err != nil {
			return p, err
		}
		err = b.conn.QueryRow(ctx, `
			select state, open_until, wave, waiting_steps, in_flight from circuit_health where namespace = $1`, side.namespace).
			Scan(&s.state, &s.openUntil, &s.wave, &s.waiting, &s.inFlight)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return p, err
		}
		p.sides = append(p.sides, s)
	}
	return p, nil
}

// show draws the table, or now and then says a line.
func (b *outageBoard) show(p outageProgress) error {
	if !b.printer.terminal {
		if len(p.sides) == 0 || p.sides[0].tasks == 0 || time.Since(b.lined) < boardLine {
			return nil
		}
		b.lined = time.Now()
		var parts []string
		for _, s := range p.sides {
			part := fmt.Sprintf("%s: %d of %d done, %d attempts failed, %d calls in vain", s.namespace, s.done, s.tasks, s.failed, s.vain)
			if s.namespace == withCircuit {
				part += fmt.Sprintf(", the circuit is %s, %d wait", s.state, s.waiting)
			}
			parts = append(parts, part)
		}
		b.say("%s", strings.Join(parts, "; "))
		return nil
	}
	list := b.printer.table("namespace", "circuit", "open_until", "wave", "waiting_steps", "in_flight", "tasks", "done", "failed_attempts", "calls_in_vain")
	for _, s := range p.sides {
		list.add(s.namespace, b.printer.state(s.state), moment(s.openUntil), fmt.Sprint(s.wave), fmt.Sprint(s.waiting), fmt.Sprint(s.inFlight),
			fmt.Sprint(s.tasks), fmt.Sprint(s.done), fmt.Sprint(s.failed), fmt.Sprint(s.vain))
	}
	return b.live.draw(append([]string{""}, list.lines()...))
}
