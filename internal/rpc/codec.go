package rpc

import (
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Codec reads and writes messages as gRPC's own does, but for two things. What is encoded already is written as it is. And a request
// that is no message of its type, such as one with text that is not UTF-8, is handed on empty with a mark, so that it is refused
// like any other bad request. gRPC itself would call it an internal error of the server.
func Codec() encoding.CodecV2 { return codec{encoding.GetCodecV2(protocodec.Name)} }

type codec struct{ encoding.CodecV2 }

// encoded is a message on the wire, for one that is sent many times.
type encoded struct{ wire []byte }

// Marshal writes a message.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if x, ok := v.(*encoded); ok {
		return mem.BufferSlice{mem.SliceBuffer(x.wire)}, nil // it has no pool that would take it back
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal reads a message, or marks it as unreadable.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	err := c.CodecV2.Unmarshal(data, v)
	m, ok := v.(proto.Message)
	if err == nil || !ok {
		return err
	}
	proto.Reset(m)
	m.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, markField, protowire.BytesType), err.Error()))
	return nil
}

// markField is the highest field number there is; no message of the contract comes near it. A client that sends it itself is
// refused, which is all that can happen.
const markField = protowire.MaxValidNumber

// undecoded is the mark that Unmarshal left, empty where it left none.
func undecoded(m proto.Message) string {
	unknown := m.ProtoReflect().GetUnknown()
	for len(unknown) > 0 {
		number, kind, n := protowire.ConsumeField(unknown)
		_ = kind
		if n < 0 {
			return ""
		}
		if number == markField {
			_, _, tag := protowire.ConsumeTag(unknown)
			text, _ := protowire.ConsumeString(unknown[tag:])
			return text
		}
		unknown = unknown[n:]
	}
	return ""
}
