"""Text to tokens: where the text comes from, how it is cut into tokens, and how crops of it reach the step. Numpy and grain only.

Knows nothing of JAX arrays, devices, networks or noise. Whatever reads, splits, tokenises or shuffles text lives here and nowhere else.

In the order of the data's way:

    files          one way to disks and buckets, and one sentence for what cannot be reached
    hub            data sets of TFDS and Hugging Face
    stretches      a file's bytes, unpacked, or those of a stretch
    text           bytes into plain text
    json_lines     bytes into the documents of JSON lines
    places         which files or data set a config names, and how they are divided
    spans          a stretch of a source: read, counted, hashed
    splits         what is for training, validation and test
    sources        all of these together: a source listed as parts, and a part read

    words          the ids of words, looked up in bulk
    unigram        a SentencePiece vocabulary, fitted
    tokenizers     bytes, characters or pieces to ids and back

    workers, beam  a map over processes, or over machines
    packing        whole documents into rows
    streams        a part's tokens on their way into a file
    layout         which shards a split has, and from which stretches of tokens
    stages         what is done to a part, and to a shard
    outputs        the folder in which data are prepared: whose it is, what of it stays
    records        rows on disk, and the manifest
    preparation    from a source to a folder of records

    prepared       such a folder, opened
    padding        PAD at random in training rows
    pipeline       batches of a text in memory or of a prepared folder
"""
