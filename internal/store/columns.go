package store

import (
	"encoding/binary"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// columns reads one row from left to right. pgx's Scan looks for a plan for every value of every row, which for the rows of
// a claim takes longer than all else that is done with them. NULL reads as zero, or as nil where a method says so.
type columns struct {
	fields []pgconn.FieldDescription
	values [][]byte
	types  *pgtype.Map
	at     int
	err    error
}

// eachRow queues a statement whose rows read reads.
func eachRow(b *pgx.Batch, name string, read func(*columns), args ...any) {
	b.Queue(sqlText(name), args...).Query(func(rows pgx.Rows) error {
		defer rows.Close()
		var c columns
		for rows.Next() {
			if c.fields == nil {
				c.fields, c.types = rows.FieldDescriptions(), rows.Conn().TypeMap()
			}
			c.values, c.at = rows.RawValues(), 0
			if read(&c); c.err != nil {
				return c.err
			}
		}
		return rows.Err()
	})
}

// next is the next value, nil for NULL. isBinary tells whether it has one of these sizes in the binary format; where the
// connection was told to speak text, pgx has to read it.
func (c *columns) next(sizes ...int) (v []byte, isBinary bool) {
	v = c.values[c.at]
	if c.fields[c.at].Format == pgtype.BinaryFormatCode {
		for _, n := range sizes {
			isBinary = isBinary || len(v) == n
		}
	}
	c.at++
	return v, isBinary
}

// scanned has pgx read the value that next returned last. Only what is read here is put on the heap, so the methods below read
// what is binary into variables of their own.
func scanned[T any](c *columns) (v T) {
	f := &c.fields[c.at-1]
	if err := c.types.Scan(f.DataTypeOID, f.Format, c.values[c.at-1], &v); err != nil && c.err == nil {
		c.err = err
	}
	return v
}

// int64 reads a smallint, int or bigint.
func (c *columns) int64() (n int64) {
	v, isBinary := c.next(2, 4, 8)
	switch {
	case v == nil:
	case !isBinary:
		n = scanned[int64](c)
	case len(v) == 2:
		n = int64(int16(binary.BigEndian.Uint16(v))) //nolint:gosec // its bits
	case len(v) == 4:
		n = int64(int32(binary.BigEndian.Uint32(v))) //nolint:gosec // its bits
	default:
		n = int64(binary.BigEndian.Uint64(v)) //nolint:gosec // its bits
	}
	return n
}

func (c *columns) int() int     { return int(c.int64()) }
func (c *columns) int32() int32 { return int32(c.int64()) } //nolint:gosec // of an int column

// isNull looks at the next value without reading it.
func (c *columns) isNull() bool { return c.values[c.at] == nil }

func (c *columns) bool() (is bool) {
	v, isBinary := c.next(1)
	switch {
	case v == nil:
	case isBinary:
		is = v[0] != 0
	default:
		is = scanned[bool](c)
	}
	return is
}

func (c *columns) uuid() (id [16]byte) {
	v, isBinary := c.next(16)
	switch {
	case v == nil:
	case isBinary:
		copy(id[:], v)
	default:
		id = scanned[[16]byte](c)
	}
	return id
}

// text reads a text. like is one that it may well equal, such as that of the row before: it then needs no memory.
func (c *columns) text(like string) string {
	v, _ := c.next()
	if string(v) == like {
		return like
	}
	return string(v)
}

// epoch2000 is where Postgres counts from, in microseconds since 1970.
const epoch2000 = 946_684_800_000_000

// time reads a timestamptz; zero for NULL.
func (c *columns) time() (t time.Time) {
	v, isBinary := c.next(8)
	if v == nil {
		return t
	}
	if isBinary {
		// The two infinities are left to pgx.
		if us := int64(binary.BigEndian.Uint64(v)); us > -1<<62 && us < 1<<62 { //nolint:gosec // its bits
			return time.UnixMicro(us + epoch2000)
		}
	}
	return scanned[time.Time](c)
}

// timeOrNil reads a timestamptz; nil for NULL.
func (c *columns) timeOrNil() *time.Time {
	if c.isNull() {
		c.at++
		return nil
	}
	t := c.time()
	return &t
}

// duration reads an interval without months; zero for NULL.
func (c *columns) duration() (d time.Duration) {
	v, isBinary := c.next(16)
	if v == nil {
		return 0
	}
	if isBinary && binary.BigEndian.Uint32(v[12:]) == 0 {
		days := int64(int32(binary.BigEndian.Uint32(v[8:])))                                                        //nolint:gosec // its bits
		return time.Duration(int64(binary.BigEndian.Uint64(v)))*time.Microsecond + time.Duration(days)*24*time.Hour //nolint:gosec // its bits
	}
	return scanned[time.Duration](c)
}

// texts reads a text array; nil for NULL.
func (c *columns) texts() (list []string) {
	if v, _ := c.next(); v != nil {
		list = scanned[[]string](c)
	}
	return list
}
