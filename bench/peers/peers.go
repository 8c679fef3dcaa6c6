// Package peers measures Tasker beside other queues that keep their jobs in Postgres: in one run, in turns, on one
// Postgres, which the run starts for itself with everything switched on that durability takes.
//
// The nouns:
//
//	peer     a queue under test, driven by a program of its own (peer.go); the floor of bench/floor stands among them
//	round    one turn of each peer; each round begins with another one
//	turn     one peer in a database of its own: it works off a backlog, then single jobs by a timetable, then whole lives
//	command  what a peer's program is told, and one measurement; bench/peers/harness lists them
//
// What the programs answer is how long it took. What it cost is read here, the same way for all: log bytes and transactions
// from Postgres, processor time from the system. So is what everything else on the machine used meanwhile: a turn in which
// that was too much is repeated once, and of each measurement the calmer one counts; what was disturbed even then is marked.
//
// Figures of two runs never stand in one document: it is written whole, or not at all.
package peers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/postgres"
)

// mostOthers is how many cores the rest of the machine may use before a measurement counts as disturbed.
const mostOthers = 0.3

// Config says what to run.
type Config struct {
	// Root is the project's directory, with the programs in bin/ and bench/peers/node.
	Root string
	// Rounds is how many turns each peer has. Default 3, or 1 where Quick.
	Rounds int
	// Quick runs everything shorter: enough to see that it works, too short for a figure to quote.
	Quick bool
	// Peers by name. Empty: all.
	Peers []string
	// Said, if set, is told of each measurement as it is made.
	Said func(line string)
}

// sizes is how long everything is.
type sizes struct {
	jobs           int     // of a backlog, and of the lives
	rate, seconds  float64 // of the timetable
	window, warmup time.Duration
}

var (
	fullSizes  = sizes{jobs: 100_000, rate: 50, seconds: 10, window: 5 * time.Second, warmup: time.Second}
	quickSizes = sizes{jobs: 6_000, rate: 50, seconds: 3, window: time.Second, warmup: 300 * time.Millisecond}
)

// Run measures, and gives the document.
func Run(ctx context.Context, c Config) (*Document, error) {
	chosen, err := choose(c.Peers)
	if err != nil {
		return nil, err
	}
	r := &run{Config: c, sizes: fullSizes}
	if c.Quick {
		r.sizes = quickSizes
	}
	if r.Rounds == 0 {
		r.Rounds = 3
		if c.Quick {
			r.Rounds = 1
		}
	}
	if r.Said == nil {
		r.Said = func(string) {}
	}
	// A peer that is missing is found before an hour is spent on the others.
	for _, p := range chosen {
		if err := p.installed(c.Root); err != nil {
			return nil, fmt.Errorf("%s is not installed: %w; make bench-peers installs it", p.name, err)
		}
	}
	return r.all(ctx, chosen)
}

// run is what the turns share.
type run struct {
	Config
	sizes
	postgres *postgres.Server
}

func (r *run) all(ctx context.Context, chosen []*peer) (_ *Document, err error) {
	r.postgres, err = postgres.Start(ctx, postgres.Config{Ephemeral: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, fmt.Errorf("starting PostgreSQL: %w", err)
	}
	defer func() { err = errors.Join(err, r.postgres.Stop(context.WithoutCancel(ctx))) }()
	d := &Document{quick: r.Quick, rounds: r.Rounds, sizes: r.sizes, peers: chosen, turns: map[string][]*turn{}}
	if d.facts, err = r.facts(ctx); err != nil {
		return nil, err
	}
	for round := range r.Rounds {
		// Whoever comes first meets what the round before has left behind: that is not to be always the same.
		for i := range chosen {
			p := chosen[(i+round)%len(chosen)]
			t, err := r.calmest(ctx, p, round)
			if err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", p.name, round+1, err)
			}
			d.turns[p.name] = append(d.turns[p.name], t)
		}
	}
	if d.loadAfter, err = loadAverage(); err != nil {
		return nil, err
	}
	d.ended = time.Now()
	return d, nil
}

// calmest has the peer take its turn, and another where the machine was not left alone. Of each measurement the calmer one
// counts.
func (r *run) calmest(ctx context.Context, p *peer, round int) (*turn, error) {
	t, err := r.turn(ctx, p, round, 0)
	if err != nil || !t.disturbed() {
		return t, err
	}
	r.Said(fmt.Sprintf("  %s was disturbed: once more", p.name))
	again, err := r.turn(ctx, p, round, 1)
	if err != nil {
		return nil, err
	}
	t.calm(again)
	return t, nil
}

// turn has the peer take one turn, in a database of its own.
func (r *run) turn(ctx context.Context, p *peer, round, again int) (_ *turn, err error) {
	name := fmt.Sprintf("peer_%s_%d_%d", strings.ReplaceAll(p.name, "-", "_"), round+1, again)
	admin, err := pgx.Connect(ctx, r.postgres.ConnString(postgres.Database))
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	defer admin.Close(context.WithoutCancel(ctx))
	if _, err := admin.Exec(ctx, "create database "+name+" template template0"); err != nil {
		return nil, fmt.Errorf("making a database: %w", err)
	}
	defer func() {
		_, dropErr := admin.Exec(context.WithoutCancel(ctx), "drop database "+name+" with (force)")
		err = errors.Join(err, dropErr)
	}()
	t := &turn{run: r, peer: p, round: round, url: r.postgres.ConnString(name), made: map[string]measurement{}}
	if p.program == nil {
		err = t.floor(ctx)
	} else {
		err = t.take(ctx)
	}
	return t, err
}

// choose finds the peers by name, in the order of the table.
func choose(names []string) ([]*peer, error) {
	var chosen []*peer
	var known []string
	for i := range all {
		known = append(known, all[i].name)
		if len(names) == 0 || slices.Contains(names, all[i].name) {
			chosen = append(chosen, &all[i])
		}
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("there is no peer %q; there are %s", name, strings.Join(known, ", "))
		}
	}
	return chosen, nil
}
