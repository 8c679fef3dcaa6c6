package engine

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"

	"github.com/taskerhq/tasker/internal/task"
)

// A page token is the key of the last row of a page, behind the first bytes of a digest of the filter it was made under.
// It is a place, not a secret: what it opens is the list that its caller may read anyway.
const pageDigest = 8

// errPageToken refuses a token that this list never gave out.
func errPageToken() error {
	return task.Refuse(task.BadPageToken, "the page token is not one of this list").At("page_token")
}

// pageToken makes the token of a place in the list that filter selects.
func pageToken(filter, key any) (string, error) {
	digest, err := filterDigest(filter)
	if err != nil {
		return "", err
	}
	place, err := json.Marshal(key)
	return base64.RawURLEncoding.EncodeToString(append(digest, place...)), err
}

// parsePageToken reads a token into key, which stays as it is for the empty token of a first page.
func parsePageToken(token string, filter, key any) error {
	if token == "" {
		return nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(raw) <= pageDigest {
		return errPageToken()
	}
	digest, err := filterDigest(filter)
	if err != nil {
		return err
	}
	if !bytes.Equal(raw[:pageDigest], digest) {
		return errPageToken()
	}
	in := json.NewDecoder(bytes.NewReader(raw[pageDigest:]))
	in.DisallowUnknownFields()
	if in.Decode(key) != nil || in.More() {
		return errPageToken()
	}
	return nil
}

func filterDigest(filter any) ([]byte, error) {
	text, err := json.Marshal(filter)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	return sum[:pageDigest:pageDigest], nil
}
