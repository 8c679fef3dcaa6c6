package rpc

import (
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// clock is the database's, as far as this server knows it: what clients are told as server_time. Nothing is decided by it.
type clock struct{ ahead atomic.Int64 }

// learn takes what the database just said.
func (c *clock) learn(databaseNow time.Time) {
	if !databaseNow.IsZero() {
		c.ahead.Store(int64(time.Until(databaseNow)))
	}
}

func (c *clock) now() *timestamppb.Timestamp { return timestamppb.New(c.instant()) }

func (c *clock) instant() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }
