package rpc

import (
	"context"
	"errors"
	"io"
	"time"
)

// watchIdle is how often an idle watch carries a heartbeat.
const watchIdle = 15 * time.Second

// watch sends what next finds, as frames, and a heartbeat when it has found nothing for a while, until next says io.EOF or ctx
// ends. frames and heartbeat are never called at the same time.
func watch[C, F any](ctx context.Context, next func(context.Context) (C, error), frames func(C) []F, heartbeat func() F, send func(F) error) error {
	changes := make(chan watched[C])
	go follow(ctx, next, changes)
	idle := time.NewTicker(watchIdle)
	defer idle.Stop()
	for {
		var ready []F
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case c := <-changes:
			switch {
			case errors.Is(c.err, io.EOF):
				return nil
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case c.err != nil:
				return c.err
			}
			ready = frames(c.change)
			idle.Reset(watchIdle)
		case <-idle.C:
			ready = []F{heartbeat()}
		}
		for _, f := range ready {
			if err := send(f); err != nil {
				return err
			}
		}
	}
}

type watched[C any] struct {
	change C
	err    error
}

// follow hands changes over until the watch or ctx ends. What happens while nobody takes one is joined by the watch.
func follow[C any](ctx context.Context, next func(context.Context) (C, error), changes chan<- watched[C]) {
	for {
		c, err := next(ctx)
		select {
		case changes <- watched[C]{c, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}
