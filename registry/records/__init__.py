"""What a record can say, and every check between stored bytes and a believed record."""
