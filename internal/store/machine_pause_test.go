package store_test

import (
	"context"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// pauses reads what a server may know, and compares it with the model.
func (x *machine) pauses() store.Pauses {
	p, err := x.s.Pauses(context.Background(), x.ns)
	x.ok(err)
	same(x, "number of pauses", int(p.Revision), x.m.revision)
	for _, h := range append([]string{""}, machineHandlers...) {
		until, in := p.Until[h]
		alone := &model{now: x.now, pauses: map[string]modelPause{}}
		if one, ok := x.m.pauses[h]; ok {
			alone.pauses[h] = one
		}
		want, is := alone.pausedUntil(h)
		same(x, "a pause of "+h, in, is)
		x.sameTime("its end", until, instant(want))
	}
	return p
}

// choose makes a claim what a server asks that knows of these pauses: their lanes are left out.
func (x *machine) choose(c *store.Claim, known store.Pauses) {
	c.Pauses = known.Revision
	_, all := known.Until[""]
	c.Lanes = slices.DeleteFunc(c.Lanes, func(l store.LaneWant) bool {
		_, one := known.Until[x.handlerOf(l.LaneID)]
		return all || one
	})
}

func (x *machine) handlerOf(lane int32) string {
	return machineHandlers[slices.Index(x.lanes, lane)/len(machinePriorities)]
}

// knows tells whether a claim knows of all pauses that a session's row does.
func (x *machine) knows(c *store.Claim, session int32) bool {
	return int(c.Pauses) >= x.m.fences[session]
}

func (x *machine) pause(t *rapid.T) {
	ctx := x.act(t)
	x.before = x.pauses()
	p := task.Pause{Handler: pick(x, "handler", "", "a", "b"), Reason: "maintenance", Actor: "ann"}
	if d := pick[time.Duration](x, "for", 0, 3*sec, 11*sec); d != 0 {
		p.Until = ptr(x.now.Add(d))
	}
	set, revision, err := x.s.PauseHandler(ctx, x.ns, p)
	x.ok(err)
	x.sameTime("paused since", &set.Since, &x.now)
	x.m.revision++
	same(x, "number of pauses", int(revision), x.m.revision)
	var until time.Time
	if p.Until != nil {
		until = *p.Until
	}
	x.m.pauses[p.Handler] = modelPause{until}
	for session := range x.m.fences {
		x.m.fences[session] = x.m.revision
	}
}

func (x *machine) resume(t *rapid.T) {
	ctx := x.act(t)
	x.before = x.pauses()
	handler := pick(x, "handler", "", "a", "b")
	alone := &model{now: x.now, pauses: map[string]modelPause{}}
	if p, ok := x.m.pauses[handler]; ok {
		alone.pauses[handler] = p
	}
	_, is := alone.pausedUntil(handler)
	ended, revision, err := x.s.ResumeHandler(ctx, x.ns, handler, operator)
	x.ok(err)
	same(x, "a pause was ended", ended != nil, is)
	if is {
		x.m.revision++
		same(x, "number of pauses", int(revision), x.m.revision)
		same(x, "its reason", ended.Reason+" of "+ended.Actor, "maintenance of ann")
		x.reached["resumed"]++
	}
	delete(x.m.pauses, handler)
}
