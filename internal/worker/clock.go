package worker

import (
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// clock translates between the database's clock, from which every instant of the contract is read, and our own.
type clock struct {
	ahead atomic.Int64 // nanoseconds by which the database's clock is ahead of ours
}

// set takes the database's clock from a frame that has just come.
func (c *clock) set(server *timestamppb.Timestamp) {
	if server != nil {
		c.ahead.Store(int64(time.Until(server.AsTime())))
	}
}

// stamp is one of our instants on the database's clock.
func (c *clock) stamp(local time.Time) *timestamppb.Timestamp {
	return timestamppb.New(local.Add(time.Duration(c.ahead.Load())))
}

// until is how long it is to an instant on the database's clock.
func (c *clock) until(server *timestamppb.Timestamp) time.Duration {
	return time.Until(server.AsTime()) - time.Duration(c.ahead.Load())
}
