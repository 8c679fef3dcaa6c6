package task

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
)

// PageFilter stands for what a list call asks for: its RPC, its caller's namespace and every filter. A page token is bound
// to it, so that a token cannot be carried over to another list.
type PageFilter [8]byte

// HashFilter makes a PageFilter of parts that together tell one list from every other.
func HashFilter(parts ...string) (f PageFilter) {
	h := sha256.New()
	for _, part := range parts {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(part)))
		h.Write(size[:])
		h.Write([]byte(part))
	}
	copy(f[:], h.Sum(nil))
	return f
}

// A page token is, in base64url: its version, the filter, and the key of the last row of the page before, each part after
// a byte that tells its type. It is no secret and needs no signature: a forged key only moves the caller within a list
// that it may read anyway.
const (
	pageVersion  = 1
	pageInt      = 'i' // 8 bytes, big endian
	pageText     = 't' // 4 bytes of length, then the text
	maxPageToken = 8192
)

// EncodePage makes the token of the page after the row with this key: int64 and string values in the list's order.
func EncodePage(f PageFilter, key ...any) string {
	b := append([]byte{pageVersion}, f[:]...)
	for _, part := range key {
		switch part := part.(type) {
		case int64:
			b = binary.BigEndian.AppendUint64(append(b, pageInt), uint64(part)) //nolint:gosec // its bits come back as they are
		case string:
			b = binary.BigEndian.AppendUint32(append(b, pageText), uint32(len(part))) //nolint:gosec // far below 4 GiB
			b = append(b, part...)
		default:
			panic(fmt.Sprintf("task: a page key cannot hold a %T", part))
		}
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// DecodePage reads a token into key: pointers to int64 and string, as many and of the types that EncodePage was given. A
// token of another list, or of none, is BAD_PAGE_TOKEN, and key is left in part overwritten.
func DecodePage(token string, f PageFilter, key ...any) error {
	if !decodePage(token, f, key) {
		return Refuse(BadPageToken, "this page token was not made for this list: start again without one").At("page_token")
	}
	return nil
}

func decodePage(token string, f PageFilter, key []any) bool {
	if len(token) > maxPageToken {
		return false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) < 1+len(f) || b[0] != pageVersion || PageFilter(b[1:1+len(f)]) != f {
		return false
	}
	b = b[1+len(f):]
	for _, part := range key {
		switch part := part.(type) {
		case *int64:
			if len(b) < 1+8 || b[0] != pageInt {
				return false
			}
			*part, b = int64(binary.BigEndian.Uint64(b[1:])), b[1+8:] //nolint:gosec // its bits come back as they are
		case *string:
			if len(b) < 1+4 || b[0] != pageText {
				return false
			}
			size := uint64(binary.BigEndian.Uint32(b[1:]))
			if b = b[1+4:]; uint64(len(b)) < size {
				return false
			}
			*part, b = string(b[:size]), b[size:]
		default:
			panic(fmt.Sprintf("task: a page key cannot hold a %T", part))
		}
	}
	return len(b) == 0
}
