package rpc_test

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

// raw is bytes to be sent as they are.
type raw struct{ bytes []byte }

// rawCodec sends raw as it is and reads answers as ever.
type rawCodec struct{ encoding.CodecV2 }

func (c rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	if r, ok := v.(*raw); ok {
		return mem.BufferSlice{mem.SliceBuffer(r.bytes)}, nil
	}
	return c.CodecV2.Marshal(v)
}
