package peers

import (
	"context"
	"time"

	"github.com/taskerhq/tasker/bench/peers/harness"
)

// Spawn starts a program as a turn does.
var Spawn = spawn

// Answer gives a command and reads the answer.
func (p *process) Answer(ctx context.Context, command string, into any) error {
	return p.answer(ctx, command, into)
}

// Stop ends it.
func (p *process) Stop() error { return p.stop() }

// Made is one figure of a made-up run.
type Made struct {
	Peer    string
	Round   int
	Rate    float64 // of drain and life
	WAL     float64
	Others  float64
	Version string
}

// DocumentOf is the document of a run that found those figures.
func DocumentOf(quick bool, rounds int, made ...Made) *Document {
	d := &Document{quick: quick, rounds: rounds, sizes: fullSizes, turns: map[string][]*turn{}}
	d.began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	d.ended = d.began.Add(90 * time.Second)
	for i := range all {
		p := &all[i]
		for _, m := range made {
			if m.Peer != p.name {
				continue
			}
			t := &turn{peer: p, round: m.Round, version: m.Version, made: map[string]measurement{}}
			for _, command := range []string{drain, latency, life} {
				x := measurement{wal: m.WAL, others: m.Others}
				x.Measurement = harness.Measurement{Command: command, Jobs: 1000, Seconds: 1000 / m.Rate, P50: 1, P99: 2}
				t.made[command] = x
			}
			if len(d.turns[p.name]) == 0 {
				d.peers = append(d.peers, p)
			}
			d.turns[p.name] = append(d.turns[p.name], t)
		}
	}
	return d
}
